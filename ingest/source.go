package ingest

import (
	"bytes"

	"github.com/tallystick/tallystick/ingest/event"
)

// protoSource walks the bytes of an EventBatch or SendEventsRequest.
type protoSource struct {
	rest []byte
	mode event.Mode
}

func (s *protoSource) next(e *event.Event) (ok bool, refusal, err error) {
	b, rest, ok, err := event.NextProto(s.rest, s.mode)
	if !ok || err != nil {
		return false, nil, err
	}
	s.rest = rest
	return true, e.DecodeProto(b, s.mode), nil
}

// jsonSource walks a JSON array, {"events": […]} or one event.
type jsonSource struct {
	batch event.JSONBatch
	mode  event.Mode
}

func (s *jsonSource) next(e *event.Event) (ok bool, refusal, err error) {
	return s.batch.Next(e, s.mode)
}

// ndjsonSource walks lines of one event each. Since lines are found without
// reading them, a malformed one stops no other. Empty lines are passed over.
type ndjsonSource struct {
	rest []byte
	mode event.Mode
}

func (s *ndjsonSource) next(e *event.Event) (ok bool, refusal, err error) {
	for len(s.rest) > 0 {
		line, rest, _ := bytes.Cut(s.rest, []byte{'\n'})
		s.rest = rest
		if line = bytes.TrimRight(line, " \t\r"); len(line) > 0 {
			return true, e.DecodeJSON(line, s.mode), nil
		}
	}
	return false, nil, nil
}
