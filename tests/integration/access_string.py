"""What the product may do on its Redis: as ElastiCache takes it, and as ACL SETUSER does.

The keys, the channels, then each command that is used, inside scripts too: `test_cluster.py` compares it with what is
really called. HELLO and AUTH need no permission. ElastiCache begins a user with all channels, hence `resetchannels`.
Its serverless caches never send a client on to another node; a cluster of which slots move needs `+asking` as well.
"""

from __future__ import annotations

KEYS = [
    *("stop:*", "run:{stop:*", "replica:*"),
    *(f"{name}:{{chats}}*" for name in ("index", "info", "live", "gone")),  # each principal's behind it
    *("whole:{chats}", "stopped:{chats}", "requests:*", "stops:*", "live_runs:*"),
]
CHANNELS = ["replica:*"]
CONNECTION = ["ping", "info", "subscribe", "cluster|slots", "script|load", "evalsha"]
OUTSIDE = ["get", "set", "mget", "del", "hset", "hkeys", "hmget", "zmscore"]
IN_SCRIPTS = ["time", "get", "getdel", "set", "del", "publish", "exists", "expire"]
IN_LIST = ["zadd", "zrem", "zrange", "zcard", "zscore", "zremrangebyscore", "hset", "hget", "hdel", "hexists"]
IN_LIMITS = ["lindex", "lpush", "ltrim", "incrby", "pttl", "pexpire", "hlen", "hgetall", "hset", "hdel", "expire"]

COMMANDS = list(dict.fromkeys(CONNECTION + OUTSIDE + IN_SCRIPTS + IN_LIST + IN_LIMITS))

ACCESS_STRING = " ".join(
    [
        "on",
        *(f"~{key}" for key in KEYS),
        "resetchannels",
        *(f"&{channel}" for channel in CHANNELS),
        "-@all",
        *(f"+{command}" for command in COMMANDS),
    ]
)
