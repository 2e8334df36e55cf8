package api

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/tokens"
	"github.com/tallystick/tallystick/ledger/chain"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// ledgerService serves tallystick.v1.LedgerService.
type ledgerService struct {
	pb.UnimplementedLedgerServiceServer
	s *Server
}

// GetHead is the end of the tenant's chain.
func (l *ledgerService) GetHead(ctx context.Context, req *pb.GetHeadRequest) (*pb.Head, error) {
	if l.s.deps.Ledger == nil {
		return nil, errUnimplemented
	}
	id, err := tenantOf(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	h, err := l.s.deps.Ledger.Head(ctx, id)
	if err != nil {
		return nil, err
	}
	return &pb.Head{
		TenantId: string(id), Seq: h.Seq, ChainHash: hex.EncodeToString(h.Chain[:]),
		KeyEpoch: int64(h.KeyEpoch), ReceivedAt: timestamp(h.ReceivedAt),
	}, nil
}

// ListEntries pages through the tenant's entries.
func (l *ledgerService) ListEntries(ctx context.Context, req *pb.ListEntriesRequest) (*pb.ListEntriesResponse, error) {
	if l.s.deps.Ledger == nil {
		return nil, errUnimplemented
	}
	id, err := tenantOf(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	size, err := pageSize(req.PageSize)
	if err != nil {
		return nil, err
	}
	question := fmt.Sprintf("entries\x00%s\x00%t", id, req.Descending)
	from, err := l.cursor(question, req.PageToken)
	if err != nil {
		return nil, err
	}
	// A head that is not there is a tenant that is not there.
	if _, err := l.s.deps.Ledger.Head(ctx, id); err != nil {
		return nil, err
	}
	list, err := l.s.deps.Ledger.Entries(ctx, id, from, size+1, req.Descending)
	if err != nil {
		return nil, err
	}
	res := &pb.ListEntriesResponse{}
	if len(list) > size {
		res.NextPageToken = l.s.pages.token(question, strconv.FormatInt(list[size].Seq, 10))
		list = list[:size]
	}
	for i := range list {
		e, err := entryMessage(string(id), &list[i])
		if err != nil {
			return nil, err
		}
		res.Entries = append(res.Entries, e)
	}
	return res, nil
}

// cursor is the number a page begins with; 0 for the first page.
func (l *ledgerService) cursor(question, token string) (int64, error) {
	cursor, err := l.s.pages.open(question, token)
	if err != nil || cursor == "" {
		return 0, err
	}
	from, err := strconv.ParseInt(cursor, 10, 64)
	if err != nil || from < 1 {
		return 0, invalidToken()
	}
	return from, nil
}

// GetEntry is one entry by its number.
func (l *ledgerService) GetEntry(ctx context.Context, req *pb.GetEntryRequest) (*pb.Entry, error) {
	if l.s.deps.Ledger == nil {
		return nil, errUnimplemented
	}
	id, err := tenantOf(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	if req.Seq < 1 {
		return nil, invalid("seq", "range", "must be at least 1")
	}
	list, err := l.s.deps.Ledger.Entries(ctx, id, req.Seq, 1, false)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 || list[0].Seq != req.Seq {
		return nil, fmt.Errorf("entry %d: %w", req.Seq, ErrNotFound)
	}
	return entryMessage(string(id), &list[0])
}

// VerifyLedger checks a range of the tenant's chain.
func (l *ledgerService) VerifyLedger(ctx context.Context, req *pb.VerifyLedgerRequest) (*pb.VerifyLedgerResponse, error) {
	if l.s.deps.Verifier == nil {
		return nil, errUnimplemented
	}
	id, err := tenantOf(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	switch {
	case req.FromSeq < 0:
		return nil, invalid("from_seq", "range", "must not be negative")
	case req.ToSeq < 0 || req.ToSeq != 0 && req.ToSeq < req.FromSeq:
		return nil, invalid("to_seq", "range", "must be 0 or not below from_seq")
	}
	return l.s.deps.Verifier.Verify(ctx, id, req)
}

// CompareLedger holds the ledger against what else has a copy of it.
func (l *ledgerService) CompareLedger(ctx context.Context, req *pb.CompareLedgerRequest) (*pb.CompareLedgerResponse, error) {
	if l.s.deps.Comparer == nil {
		return nil, errUnimplemented
	}
	id, err := tenantOf(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	found, err := l.s.deps.Comparer.Compare(ctx, id)
	return &pb.CompareLedgerResponse{Differences: found}, err
}

// entryMessage decodes an entry for the API. An entry that does not decode is
// answered with its bytes all the same: whoever looks for tampering must see it.
func entryMessage(tenantID string, s *StoredEntry) (*pb.Entry, error) {
	leaf := chain.NewHasher().Leaf(s.Canonical)
	m := &pb.Entry{
		TenantId: tenantID, Seq: s.Seq, Canonical: s.Canonical,
		LeafHash: hex.EncodeToString(leaf[:]), ChainHash: hex.EncodeToString(s.Chain[:]),
		Mac: hex.EncodeToString(s.MAC[:]), KeyEpoch: int64(s.Epoch),
	}
	var e chain.Entry
	if err := e.Decode(s.Canonical); err != nil {
		m.Kind = "undecodable"
		return m, nil
	}
	fillEntry(m, &e)
	return m, nil
}

func fillEntry(m *pb.Entry, e *chain.Entry) {
	ev := &e.Event
	m.Kind, m.EventId = e.Kind.String(), ev.ID
	m.OccurredAt, m.ReceivedAt = nanos(ev.OccurredAt), nanos(ev.ReceivedAt)
	m.Provider, m.Model, m.Status = ev.Provider, ev.Model, ev.Status
	if e.Priced {
		cost := e.Cost.String()
		m.CostUsd = &cost
	}
	m.PriceRow, m.UnpricedReason, m.RejectReason = e.PriceRow, e.UnpricedReason, e.RejectReason
	switch {
	case e.PriceBook != (chain.Hash{}):
		m.PriceBook = hex.EncodeToString(e.PriceBook[:])
	case e.ControlKind == event.ControlPriceBook:
		m.PriceBook = hex.EncodeToString(e.ControlHash[:])
	}
	m.Tokens = make(map[string]int64)
	for c, n := range ev.Tokens {
		if n != 0 {
			m.Tokens[tokens.Class(c).String()] = n
		}
	}
	m.Attribution, m.Correction = attribution(e), correction(e)
	m.GpuUs, m.GpuState, m.PurchaseOption, m.DerivedFrom = ev.GPUMicros, ev.GPUState, ev.PurchaseOption, ev.DerivedFrom
	m.KafkaPosition = fmt.Sprintf("%x/%d/%d", e.Position.TopicID, e.Position.Partition, e.Position.Offset)
}

// attribution is who a call is accounted to, without what is empty.
func attribution(e *chain.Entry) map[string]string {
	ev := &e.Event
	all := map[string]string{
		"team": ev.Team, "service": ev.Service, "feature": ev.Feature, "agent": ev.Agent,
		"user_pseudonym": ev.UserPseudonym, "end_customer": ev.EndCustomer, "environment": ev.Environment,
	}
	for k, v := range all {
		if v == "" {
			delete(all, k)
		}
	}
	for _, t := range ev.Tags {
		all["tag:"+t.Key] = t.Value
	}
	return all
}

// timestamp is nil for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// nanos is the time at unix nanoseconds, nil at 0.
func nanos(ns int64) *timestamppb.Timestamp {
	if ns == 0 {
		return nil
	}
	return timestamppb.New(time.Unix(0, ns))
}
