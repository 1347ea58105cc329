"""The control function: stop, look, list, delete; and stops that come as EventBridge events or SNS messages."""

import gc
import sys

gc.disable()  # nothing of what is imported is garbage, and looking for some takes a tenth of the time
sys.modules["pydantic.v1"] = None  # type: ignore[assignment] # FastAPI would import it only to find that nobody uses it
from haltline.control_function import ControlFunction  # noqa: E402

handler = ControlFunction()
gc.freeze()
gc.enable()
