package usage

// Final reports that the provider has said that the response is over, and that
// nothing which may still follow changes what it used. Where no event says so
// (Gemini's streams, JSON lines that are summed) only the end of the bytes does, and
// Final stays false. Who forwards a response asks it before passing on the bytes by
// which a client sees the end.
func (m *Meter) Final() bool {
	switch m.x.Framing {
	case JSON:
		return m.docs > 0 && m.outer.idle() && m.g.merging != sums
	case SSE:
		return m.terminal && !m.g.finishEnds
	case EventStream:
		return m.terminal && m.seen.has&usageCounts != 0 && !m.frame.inside()
	default:
		return false
	}
}

// Reset forgets all that was read and begins another body.
func (r *RequestReader) Reset() {
	r.m.Reset(Exchange{Dialect: Compatible})
	r.m.g = ask
	r.m.outer.reset(ask)
}
