package api

import (
	"context"
	"encoding/hex"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/ledger/chain"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// States of an event.
const (
	stateLedgered = "ledgered"
	stateUnknown  = "unknown"
)

// GetEvent says what became of an event. The ingest edge passes its gRPC method
// of that name on to it.
func (s *Server) GetEvent(ctx context.Context, req *pb.GetEventRequest) (*pb.EventFate, error) {
	if s.deps.Ledger == nil {
		return nil, errUnimplemented
	}
	id, err := tenantOf(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	if req.EventId == "" || len(req.EventId) > event.MaxIDBytes {
		return nil, invalid("event_id", "length", "must have 1 to %d bytes", event.MaxIDBytes)
	}
	fate, err := s.deps.Ledger.Fate(ctx, id, req.EventId)
	if err != nil {
		return nil, err
	}
	m := &pb.EventFate{TenantId: string(id), EventId: req.EventId, State: stateUnknown, Conflicts: fate.Conflicts}
	if fate.Entry == nil {
		return m, nil
	}
	m.State, m.Seq, m.ChainHash = stateLedgered, fate.Entry.Seq, hex.EncodeToString(fate.Entry.Chain[:])
	var e chain.Entry
	if err := e.Decode(fate.Entry.Canonical); err != nil {
		return nil, err
	}
	m.UnpricedReason = e.UnpricedReason
	if e.Priced {
		cost := e.Cost.String()
		m.CostUsd = &cost
	}
	return m, nil
}

// eventService is the IngestService of REST: GetEvent only. The other methods
// are the edge's, with their own HTTP form.
type eventService struct {
	pb.UnimplementedIngestServiceServer
	s *Server
}

// GetEvent says what became of an event.
func (e *eventService) GetEvent(ctx context.Context, req *pb.GetEventRequest) (*pb.EventFate, error) {
	return e.s.GetEvent(ctx, req)
}
