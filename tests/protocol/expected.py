"""Promises that a scenario may break, and why. It is run all the same: no other promise may break, and it must end."""

from __future__ import annotations

# Rules of the protocol that the product keeps in part only so far. Who adds one takes its lines away.
STANDS_STILL = "a replica that was not heard for a while does not hold its runs still until it has claimed them again"
YOUNG_BUS = "a bus that has forgotten is used at once, and stops it forgot are not set again"
# Nobody could.
FORGOTTEN = "Redis forgot the receipt, or was gone, between END and its reading"
GONE_WITH_IT = "Redis forgot the stop, and the replica that took it is dead"
UNSEEN = "nobody is told that another Redis answers, with older data"
TWO_CLOCKS = "a program's two requests lie closer together than the clocks: name the run"
GOES_ON = "SIGNAL_LOSS_POLICY=continue"
# Limits of the product.
END_LATER = "an END that finds no bus is said later; until then, or until its pulse runs out, the run holds the chat"
TWO_RECEIPTS = "the last two receipts are kept: where its push was lost, the ends of two runs hide it"

# Where no push arrives at all.
EXPECTED_OF_LOOKS = {"RECEIPT_MISSED": TWO_RECEIPTS}

EXPECTED: dict[str, dict[str, str]] = {
    "the owner stalls": {"TWO_RUNS_LIVE": STANDS_STILL},
    "the owner stalls, stop": {"TWO_RUNS_LIVE": STANDS_STILL},
    "the owner stalls, the chat is deleted": {"DELETED_CHAT_COMES_BACK": STANDS_STILL},
    "both owners stall": {"TWO_RUNS_LIVE": STANDS_STILL},
    "the owner is cut off": {"TWO_RUNS_LIVE": STANDS_STILL, "FALSE_409_AFTER_CLOSING_FRAME": END_LATER},
    "Redis restarts with its data": {
        "FALSE_ANSWER": STANDS_STILL,  # idle, of a run whose chat was taken and that does not know it yet
        "TWO_RUNS_LIVE": STANDS_STILL,
        "RECEIPT_MISSED": FORGOTTEN,
        "FALSE_409_AFTER_CLOSING_FRAME": END_LATER,
    },
    "Redis comes back empty": {"FALSE_ANSWER": YOUNG_BUS, "RECEIPT_MISSED": FORGOTTEN, "STOP_LOST": YOUNG_BUS},
    "Redis comes back empty, two messages": {"TWO_RUNS_LIVE": YOUNG_BUS, "FALSE_409_AFTER_CLOSING_FRAME": YOUNG_BUS},
    "Redis comes back empty, then a stop": {
        "RECEIPT_MISSED": FORGOTTEN,
        "STOP_LOST": YOUNG_BUS,
        "FALSE_ANSWER": YOUNG_BUS,
        "TWO_RUNS_LIVE": YOUNG_BUS,
    },
    "an older Redis takes over": {"RECEIPT_MISSED": FORGOTTEN, "STOP_LOST": YOUNG_BUS, "FALSE_ANSWER": YOUNG_BUS},
    "an older Redis takes over, two messages": {
        "TWO_RUNS_LIVE": YOUNG_BUS,
        "FALSE_409_AFTER_CLOSING_FRAME": YOUNG_BUS,
    },
    "an older Redis takes over, stop, then a message": {
        "STOP_LOST": YOUNG_BUS,
        "TWO_RUNS_LIVE": YOUNG_BUS,
        "FALSE_409_AFTER_CLOSING_FRAME": YOUNG_BUS,
    },
    "an older Redis takes over, the live run is stopped": {
        "RECEIPT_MISSED": FORGOTTEN,
        "STOP_LOST": YOUNG_BUS,
        "FALSE_ANSWER": YOUNG_BUS,
    },
    "Redis comes back empty, the stopper is killed": {"STOP_LOST": GONE_WITH_IT},
    "Redis comes back empty, the owner stalls": {
        "TWO_RUNS_LIVE": f"{STANDS_STILL}; {YOUNG_BUS}",
        "TWO_WRITERS": YOUNG_BUS,
        "FALSE_409_AFTER_CLOSING_FRAME": YOUNG_BUS,
    },
    "an older Redis behind a proxy": {"FALSE_ANSWER": UNSEEN, "STOP_LOST": UNSEEN, "RECEIPT_MISSED": FORGOTTEN},
    "an older Redis behind a proxy, two messages": {"TWO_RUNS_LIVE": UNSEEN, "FALSE_409_AFTER_CLOSING_FRAME": UNSEEN},
    "the owner is cut off and may go on": {"TWO_RUNS_LIVE": GOES_ON, "FALSE_409_AFTER_CLOSING_FRAME": END_LATER},
    "clock -50 ms, a program: message, stop": {"STOP_LOST": TWO_CLOCKS},
    "clock +50 ms, a program: stop answered, message": {"STOP_HITS_ANOTHER_RUN": TWO_CLOCKS},
}
