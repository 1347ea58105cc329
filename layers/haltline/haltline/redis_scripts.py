"""The Lua scripts of the bus: each one decision, made whole inside Redis. All keys of a script lie in one slot.

Keys of a chat X:
- `stop:X`: the mailbox, the stamp (ms) of the latest stop that no run has consumed. A person may SET it.
- `run:{stop:X}`: the record, JSON: who holds the chat, which stops are consumed, how the last run ended.
- `stop:{stop:X}:RUN`: a stop that names its run, `<ms>:<reason>`.

Fields of the record: `run owner nonce a door claim` of the holder (`a` its arrival in ms, to the µs and as text, `door`
whether a front door's clock told it), `closing` (it was told to halt), `delete` (the holder only deletes),
`stopped` (what BEGIN found), `waiters` (replicas that want the receipt); `upto` and `gone`, the newest stop and
deletion already consumed: they cover every request that arrived no later; `mail` and `mail_exact`, the mailbox' stamp
as it stands there in ms and to the µs; `last` and `before`, the receipts of the two runs that ended last: the next end
must not hide one from whoever waits for it.

`claim` is Redis TIME in µs as a string (cjson keeps 14 digits), always growing, so that an older world, after a
failover, is told from a newer one.
"""

from __future__ import annotations

SLACK_MS = 50  # how far two clocks may differ where the stamps are not both the front door's


def keys(chat_id: str, run_id: str) -> list[str]:
    """The keys of every script, in order."""
    return [mailbox_key(chat_id), record_key(chat_id), named_key(chat_id, run_id)]


def mailbox_key(chat_id: str) -> str:
    """Where an unconsumed stop lies."""
    return f"stop:{chat_id}"


def record_key(chat_id: str) -> str:
    """Who holds the chat. The braces put it in the mailbox's slot."""
    return f"run:{{stop:{chat_id}}}"


def named_key(chat_id: str, run_id: str) -> str:
    """Where a stop lies that names its run."""
    return f"stop:{{stop:{chat_id}}}:{run_id}"


def pulse_key(replica_id: str) -> str:
    """What a replica vouches for; its channel has the same name."""
    return f"replica:{replica_id}"


_HEAD = """
local t = redis.call('TIME')
local now = t[1] * 1000 + t[2] / 1000 -- ms, to the µs: a stop and the message after it may lie in one ms
local raw = redis.call('GET', KEYS[2])
local rec = raw and cjson.decode(raw) or {}

-- a request's stamp, or this clock less its age where no front door gave one; a stamp from the future counts as now
local function stamp(given, age)
  given = tonumber(given)
  if not given or given <= 0 then return now - tonumber(age) end
  if given > now + 1000 then return now end
  return given
end

local function text(ms) return string.format('%.3f', ms) end -- cjson would round it

local function next_claim()
  local claim, old = t[1] * 1000000 + t[2], tonumber(rec.claim or '0')
  if claim <= old then claim = old + 1 end
  return string.format('%.0f', claim)
end

local function save(ttl) redis.call('SET', KEYS[2], cjson.encode(rec), 'EX', ttl) end

-- what the mailbox says, to the µs where this record wrote it; nil where it holds no time
local function time_in(mail) return mail and mail == rec.mail and tonumber(rec.mail_exact) or tonumber(mail or '') end

-- the mailbox' stop is consumed: from here the watermark remembers whom it covers. What is no time, or lies in the
-- future (a person SET it by hand), covers up to `otherwise`
local function drain(otherwise)
  local mail = redis.call('GETDEL', KEYS[1])
  if not mail then return end
  local covered = time_in(mail)
  if not (covered and covered <= now + 1000) then covered = otherwise end
  rec.upto, rec.mail, rec.mail_exact = text(math.max(tonumber(rec.upto or 0), covered)), nil, nil
end

local function watch(replica)
  rec.waiters = rec.waiters or {}
  for _, known in ipairs(rec.waiters) do if known == replica then return end end
  table.insert(rec.waiters, replica)
end

local function tell(replica, message) redis.call('PUBLISH', 'replica:' .. replica, cjson.encode(message)) end
"""

# ARGV: run, owner, nonce, stamp, age ms, ttl s, claim of a dead holder to take over from ('' none), 'run' | 'delete'
BEGIN = (
    _HEAD
    + """
local mine, arrived = rec.nonce == ARGV[3], stamp(ARGV[4], ARGV[5])
if not mine and rec.last and rec.last.run_id == ARGV[1] then return {'used'} end
if rec.run and not mine and rec.claim ~= ARGV[7] then
  if rec.closing then watch(ARGV[2]); save(ARGV[6]) end
  local later = tonumber(rec.a) > arrived and '1' or ''
  return {'busy', rec.run, rec.owner, rec.nonce, rec.claim, later, rec.closing and '1' or ''}
end
local claim = next_claim()
if not mine then
  local named = redis.call('GET', KEYS[3])
  drain(now)
  rec.run, rec.owner, rec.nonce, rec.a, rec.door = ARGV[1], ARGV[2], ARGV[3], text(arrived), tonumber(ARGV[4]) > 0
  rec.stopped, rec.waiters, rec.delete = nil, nil, nil
  if ARGV[8] == 'delete' then
    rec.delete, rec.gone = true, text(math.max(tonumber(rec.gone or 0), arrived))
  elseif tonumber(rec.gone or 0) >= arrived then rec.stopped = 'deleted' -- first: such a run writes nothing
  elseif named then rec.stopped = string.match(named, ':(%l+)$') or 'user'
  elseif tonumber(rec.upto or 0) >= arrived then rec.stopped = 'user' end
  rec.closing = rec.stopped ~= nil or ARGV[8] == 'delete'
end
rec.claim = claim
save(ARGV[6])
return {'begun', claim, rec.a, rec.stopped or ''}
"""
)

# ARGV: stamp, age ms, ttl s, run ('' for whoever the stamp means), reason, replica that wants the receipt ('' none),
# ttl s of a record, '1' where a stop that was stored before is set again by the stamp it got then | ''. Of one that
# finds no live run it also tells whether it lay there already, read by nobody.
STOP = (
    _HEAD
    + f"local SLACK = {SLACK_MS}"
    + """
local s, live, again = stamp(ARGV[1], ARGV[2]), rec.run and not rec.delete, ARGV[8] == '1'

local function halt()
  rec.closing = true
  if ARGV[6] ~= '' then watch(ARGV[6]) end
  save(ARGV[7])
  tell(rec.owner, {stop = rec.nonce, reason = ARGV[5]})
  return {'live', rec.run, rec.owner, text(s)}
end

if ARGV[4] ~= '' then
  if rec.last and rec.last.run_id == ARGV[4] then return {'ended', cjson.encode(rec.last)} end
  local lay = redis.call('EXISTS', KEYS[3]) == 1
  if again and lay then return {'known'} end
  redis.call('SET', KEYS[3], string.format('%.0f:%s', s, ARGV[5]), 'EX', ARGV[3])
  if live and rec.run == ARGV[4] then return halt() end
  return {'idle', text(s), lay and '1' or ''}
end
if again and ARGV[5] == 'deleted' then -- a deletion that was done: what was sent before it must not bring the chat back
  rec.gone = text(math.max(tonumber(rec.gone or 0), s))
  save(ARGV[7])
  return {'known'}
end
local stored = time_in(redis.call('GET', KEYS[1]))
if again and math.max(stored or 0, tonumber(rec.upto or 0)) >= s then return {'known'} end
if live and s < tonumber(rec.a) then
  local slack = (again or rec.door and tonumber(ARGV[1]) > 0) and 0 or SLACK
  if s < tonumber(rec.a) - slack then -- late: meant for those that came before this run
    if s > tonumber(rec.upto or 0) then rec.upto = text(s); save(ARGV[7]) end
    return {'idle', text(s), ''}
  end
  s = tonumber(rec.a)
end
if not (stored and stored >= s) then -- also over what is no number
  rec.mail, rec.mail_exact = string.format('%.0f', math.floor(s)), text(s)
  redis.call('SET', KEYS[1], rec.mail, 'EX', ARGV[3])
  save(ARGV[7])
end
if live then return halt() end
return {'idle', text(s), stored == s and '1' or ''}
"""
)

# ARGV: nonce, ttl s. Before an end that the owner decided itself.
CLOSING = (
    _HEAD
    + """
if rec.nonce ~= ARGV[1] then return {'lost'} end
if not rec.closing then rec.closing = true; save(ARGV[2]) end
return {'closing'}
"""
)

# ARGV: run, nonce, claim last known, receipt as JSON, ttl s. Whose the record is says the nonce: the claim may be
# raised meanwhile. Where it was forgotten, or is an older world's, the run ends all the same: none may put it back.
END = (
    _HEAD
    + """
local mine, known = rec.nonce == ARGV[2], tonumber(ARGV[3])
if not mine and tonumber(rec.claim or '0') >= known then
  if rec.last and rec.last.run_id == ARGV[1] then return {'again'} end
  return {'lost'}
end
local receipt, waiters = cjson.decode(ARGV[4]), rec.waiters or {}
local refused = receipt.outcome == 'refused' -- it never ran: the same request may be sent again
drain(mine and tonumber(rec.a) or 0) -- a request that came while this run was ending is not meant
redis.call('DEL', KEYS[3])
if not mine then rec.claim = ARGV[3] end
for _, field in ipairs({'run', 'owner', 'nonce', 'a', 'door', 'closing', 'delete', 'stopped', 'waiters'}) do
  rec[field] = nil
end
if not refused then rec.before, rec.last = rec.last, receipt end
save(ARGV[5])
for _, replica in ipairs(waiters) do tell(replica, {ended = receipt}) end
return {'ended'}
"""
)

# ARGV: run, owner, nonce, arrival ms, '1' | '' told by a front door, claim last known, ttl s, '1' | '' it was halted,
# 'run' | 'delete'.
# No pulse vouched for the run for a while, and nobody has taken its chat: whoever is about to is refused by the new
# claim. Or the record was forgotten, or is that of an older world: what that one says of a holder is not said of this
# run.
CLAIM = (
    _HEAD
    + """
local known = tonumber(ARGV[6])
if rec.nonce ~= ARGV[3] and tonumber(rec.claim or '0') >= known then return {'lost'} end
if tonumber(rec.claim or '0') < known then rec.claim = ARGV[6] end
if rec.nonce ~= ARGV[3] then rec.closing, rec.stopped, rec.waiters = nil, nil, nil end
rec.run, rec.owner, rec.nonce, rec.a, rec.door = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'
rec.delete = ARGV[9] == 'delete' or nil
if ARGV[8] == '1' then rec.closing = true end
local put = time_in(redis.call('GET', KEYS[1]))
if put and put < tonumber(rec.a) then drain(0) end -- BEGIN had consumed it in the world that was lost
rec.claim = next_claim()
save(ARGV[7])
return {'held', rec.claim}
"""
)
