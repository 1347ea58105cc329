"""Promises that a scenario may break, and why. It is run all the same: no other promise may break, and it must end."""

from __future__ import annotations

# Nobody could.
FORGOTTEN = "Redis forgot the receipt, or was gone, between END and its reading"
GONE_WITH_IT = "Redis forgot the stop, and the replica that took it is dead"
STALLED_MEANWHILE = "Redis forgot the run while its replica stood still"
UNSEEN = "nobody is told that another Redis answers, with older data"
TWO_CLOCKS = "a program's two requests lie closer together than the clocks: name the run"
GOES_ON = "SIGNAL_LOSS_POLICY=continue"
# Limits of the product.
NEW_CHAT = "the version of a chat that was deleted is that of one nobody wrote: the holder is asked just before"
END_LATER = "an END that finds no bus is said later; until then, or until its pulse runs out, the run holds the chat"
TWO_RECEIPTS = "the last two receipts are kept: where its push was lost, the ends of two runs hide it"

# Where no push arrives at all.
EXPECTED_OF_LOOKS = {"RECEIPT_MISSED": TWO_RECEIPTS}

EXPECTED: dict[str, dict[str, str]] = {
    "the owner stalls, the chat is deleted": {"DELETED_CHAT_COMES_BACK": NEW_CHAT},
    "the owner is cut off": {"FALSE_409_AFTER_CLOSING_FRAME": END_LATER},
    "Redis restarts with its data": {"RECEIPT_MISSED": FORGOTTEN, "FALSE_409_AFTER_CLOSING_FRAME": END_LATER},
    "Redis comes back empty": {"RECEIPT_MISSED": FORGOTTEN},
    "Redis comes back empty, then a stop": {"RECEIPT_MISSED": FORGOTTEN},
    "an older Redis takes over": {"RECEIPT_MISSED": FORGOTTEN},
    "an older Redis takes over, the live run is stopped": {"RECEIPT_MISSED": FORGOTTEN},
    "Redis comes back empty, the stopper is killed": {"STOP_LOST": GONE_WITH_IT},
    "Redis comes back empty, the owner stalls": {"TWO_RUNS_LIVE": STALLED_MEANWHILE},
    "an older Redis behind a proxy": {"FALSE_ANSWER": UNSEEN, "STOP_LOST": UNSEEN, "RECEIPT_MISSED": FORGOTTEN},
    "an older Redis behind a proxy, two messages": {"TWO_RUNS_LIVE": UNSEEN, "FALSE_409_AFTER_CLOSING_FRAME": UNSEEN},
    "the owner is cut off and may go on": {"TWO_RUNS_LIVE": GOES_ON, "FALSE_409_AFTER_CLOSING_FRAME": END_LATER},
    "clock -50 ms, a program: message, stop": {"STOP_LOST": TWO_CLOCKS},
    "clock +50 ms, a program: stop answered, message": {"STOP_HITS_ANOTHER_RUN": TWO_CLOCKS},
}
