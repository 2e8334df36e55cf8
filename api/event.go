package api

import (
	"context"
	"encoding/hex"
	"net/http"

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
	entry, err := s.deps.Ledger.Event(ctx, id, req.EventId)
	if err != nil {
		return nil, err
	}
	m := &pb.EventFate{TenantId: string(id), EventId: req.EventId, State: stateUnknown}
	if entry == nil { // nothing to conflict with
		return m, nil
	}
	if s.deps.Conflicts != nil {
		if m.Conflicts, err = s.deps.Conflicts.Conflicts(ctx, id, req.EventId); err != nil {
			return nil, err
		}
	}
	m.State, m.Seq, m.ChainHash = stateLedgered, entry.Seq, hex.EncodeToString(entry.Chain[:])
	var e chain.Entry
	if err := e.Decode(entry.Canonical); err != nil {
		return nil, err
	}
	m.UnpricedReason = e.UnpricedReason
	if e.Priced {
		cost := e.Cost.String()
		m.CostUsd = &cost
	}
	return m, nil
}

// serveEvent is GetEvent as REST.
func (s *Server) serveEvent(w http.ResponseWriter, r *http.Request) error {
	req := &pb.GetEventRequest{EventId: r.PathValue("event_id"), TenantId: r.URL.Query().Get("tenant_id")}
	m, err := s.GetEvent(r.Context(), req)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(appendMessage(nil, m.ProtoReflect()), '\n')) // the client has gone
	return nil
}
