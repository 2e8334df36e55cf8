package load

import "time"

// maxClient bounds the client numbers of a trace, and so the table of profiles.
const maxClient = 100_000

// fields reads comma-separated whole numbers from the front of a line.
type fields struct {
	rest []byte
	bad  bool
}

// num reads one number and the comma after it.
func (f *fields) num() int64 {
	var v int64
	i := 0
	for ; i < len(f.rest) && f.rest[i] != ','; i++ {
		c := f.rest[i] - '0'
		if c > 9 || v > (1<<53) {
			f.bad = true
			return 0
		}
		v = v*10 + int64(c)
	}
	if i == 0 {
		f.bad = true
		return 0
	}
	f.rest = f.rest[min(i+1, len(f.rest)):]
	return v
}

// small reads a number below limit.
func (f *fields) small(limit int64) int64 {
	v := f.num()
	if v >= limit {
		f.bad = true
	}
	return v
}

// maxTraceTokens is far above any context window.
const maxTraceTokens = 1 << 40

// millis reads a time of at most a year.
func (f *fields) millis() int64 { return f.small(366*24*3600*1000) * 1000 }

func (f *fields) done() bool { return !f.bad && len(f.rest) == 0 }

func parseServeGen(line []byte, r *traceRow) bool {
	f := fields{rest: line}
	*r = traceRow{atMicros: f.millis(), client: int32(f.small(maxClient)), input: f.small(maxTraceTokens), output: f.small(maxTraceTokens)}
	return f.done()
}

// parseServeGenReason: reasoning tokens are part of the output in the trace and
// a class of their own in an event.
func parseServeGenReason(line []byte, r *traceRow) bool {
	f := fields{rest: line}
	*r = traceRow{atMicros: f.millis(), client: int32(f.small(maxClient)), input: f.small(maxTraceTokens), output: f.small(maxTraceTokens), reasoning: f.small(maxTraceTokens)}
	r.output -= r.reasoning
	return f.done() && r.output >= 0
}

// parseMooncake: cached tokens are part of the input in the trace. The chain of
// cached blocks that a request begins with stands for its client.
func parseMooncake(line []byte, r *traceRow) bool {
	f := fields{rest: line}
	*r = traceRow{atMicros: f.millis(), input: f.small(maxTraceTokens), cached: f.small(maxTraceTokens), output: f.small(maxTraceTokens)}
	d := newDice(0, streamClient, f.num())
	r.client = int32(d.below(mooncakeClients))
	f.num()
	r.input -= r.cached
	return f.done() && r.input >= 0
}

const mooncakeClients = 24

// parseAzure reads "2023-11-16 18:17:03.9799600,4808,10".
func parseAzure(line []byte, r *traceRow) bool {
	const layout = "2006-01-02 15:04:05.0000000"
	if len(line) <= len(layout) || line[len(layout)] != ',' {
		return false
	}
	micros, ok := azureTime(line[:len(layout)])
	if !ok {
		return false
	}
	f := fields{rest: line[len(layout)+1:]}
	*r = traceRow{atMicros: micros, input: f.small(maxTraceTokens), output: f.small(maxTraceTokens)}
	return f.done()
}

// azureTime is the time in microseconds since 1970; the seventh digit is cut.
func azureTime(b []byte) (int64, bool) {
	digits := func(from, to int) (v int) {
		for _, c := range b[from:to] {
			if c < '0' || c > '9' {
				return -1 << 30
			}
			v = v*10 + int(c-'0')
		}
		return v
	}
	y, mo, d := digits(0, 4), digits(5, 7), digits(8, 10)
	h, mi, s, us := digits(11, 13), digits(14, 16), digits(17, 19), digits(20, 26)
	if b[4] != '-' || b[7] != '-' || b[10] != ' ' || b[13] != ':' || b[16] != ':' || b[19] != '.' ||
		y < 1970 || y > 2200 || mo < 1 || mo > 12 || d < 1 || d > 31 || h < 0 || h > 23 || mi < 0 || mi > 59 || s < 0 || s > 59 || us < 0 || digits(26, 27) < 0 {
		return 0, false
	}
	return time.Date(y, time.Month(mo), d, h, mi, s, 0, time.UTC).UnixMicro() + int64(us), true
}
