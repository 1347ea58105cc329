"""A fake Amazon Bedrock Runtime: ConverseStream and Converse as a script tells it, and a log of who left when.

Run as a process of its own:
`python -m local.fake_bedrock [--host H] [--port N] [--log FILE] [--tls-cert F --tls-key F]`.
Port 0 takes a free one. Once it listens it prints one line, `fake Bedrock on http://127.0.0.1:8082`. SIGTERM and SIGINT
end it with status 0, open streams are cut.

The last text of the user may hold a script, `/script ` and a JSON object up to its end:

- `name`: str, found again in every line of the log about this request
- `chunks`: list of str, sent as they are, one text delta each; or `text`: str, split into words (a fixed text)
- `repeat`: how often (1)
- `pace_ms`: between two deltas (20)
- `headers_ms`: silence before the headers of the response (0)
- `delay_ms`: silence between the headers and the first frame (0)
- `stall_after`: text deltas after which nothing is said for `stall_ms` (60000); then it goes on
- `reasoning`: list of str, sent first as a content block of its own, closed by a signature; in every call of the turn
- `tools`: list of {"name", "input"}, called together before the text, in `rounds` (1) calls of the turn; `tool_text`:
  str, said before each such call. A round is over when its results are in the request.
- `throttle`: how many calls are refused with 429 ThrottlingException before one is answered, -1 for all. Counted for
  a model id and a `name`, without a name for the whole text.
- `refuse`: {"status", "code", "message"}, an HTTP error (400 ValidationException)
- `fail`: {"code", "message"}, an exception frame after the text, such as modelStreamErrorException
- `drop`: true cuts the connection after the text, without the last chunk
- `guardrail`: true ends the turn as a guardrail that blocked it, the text is what it says instead
- `stop_reason`: the reason at the end ("end_turn")

The names of `script.BEHAVIOURS` (throttle, on-demand, overflow, denied, stall, drop, fail, guardrail) stand for
scripts. The model id `fake.NAME` obeys NAME whatever the text is; so does any model when a text without a script begins
with NAME.

The log has one JSON object a line. `at`, `first_at` and `last_at` are seconds of `time.monotonic()`, which all
processes of a Linux machine share; `connection` is the client's port; `sent` counts text deltas.

- `request`: id, model, operation, connection, text (80 characters of the user's last), name, attempt (from the header
  amz-sdk-request, 1 for the first), messages (how many). Whatever is said of a request later bears its id, name and
  connection.
- `closed`: the client left before the end; `at` is when its end of the stream was seen, phase is before_headers,
  before_first or streaming, sent_after_close counts text deltas written after `at`
- `completed`, `failed` (with code), `dropped`: the end, with sent, first_at and last_at of the text deltas;
  written just before the client can see that end
- `refused`: code; `invalid`: why, besides the `refused` of the same request
- `ended`: this process was told to end
- `connection_closed`: a TCP connection ended, idle or not; by: client or server

A client that keeps its socket open has not left: its request is `completed`.
"""
