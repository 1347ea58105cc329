"""The control function: stop, look, list, delete; and stops that come as EventBridge events or SNS messages."""

from haltline.control_function import ControlFunction

handler = ControlFunction()
