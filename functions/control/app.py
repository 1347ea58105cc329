"""The control function: stop, look, list, delete; and stops that come as EventBridge events or SNS messages."""

import gc
import os
import sys

os.environ["LOGURU_AUTOINIT"] = "0"  # a sink is set up soon; loguru's first one takes 3 % of the init
sys.modules["pydantic.v1"] = None  # type: ignore[assignment] # FastAPI does without, and else imports all of it to ask
gc.disable()  # nothing of what is imported is garbage, and looking for some takes a third of the time
from haltline.control_function import ControlFunction  # noqa: E402

handler = ControlFunction()
gc.freeze()
gc.enable()
