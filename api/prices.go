package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/pricing"
	"github.com/tallystick/tallystick/internal/pricing/candidate"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Prices keeps price books and candidates for them, and audits it in the same
// transaction; *candidate.Store does, and its errors are understood.
type Prices interface {
	InForce(ctx context.Context) (*pricing.Book, error)
	Content(ctx context.Context, hash candidate.Hash) ([]byte, error)
	History(ctx context.Context) ([]candidate.Book, error)
	Propose(ctx context.Context, row audit.Event, p *candidate.Proposal) (candidate.Candidate, pricing.Changes, error)
	Decide(ctx context.Context, row audit.Event, id string, approve bool, reason string) (candidate.Candidate, error)
	Get(ctx context.Context, id string) (candidate.Candidate, error)
	List(ctx context.Context, state string) ([]candidate.Candidate, error)
}

func (s *priceService) prices() (Prices, error) {
	if s.s.deps.Prices == nil {
		return nil, errUnimplemented
	}
	return s.s.deps.Prices, nil
}

// ListPriceBooks lists the books that were published.
func (s *priceService) ListPriceBooks(ctx context.Context, _ *pb.ListPriceBooksRequest) (*pb.ListPriceBooksResponse, error) {
	prices, err := s.prices()
	if err != nil {
		return nil, err
	}
	list, err := prices.History(ctx)
	if err != nil {
		return nil, pricesError(ctx, err)
	}
	res := &pb.ListPriceBooksResponse{}
	for i := range list {
		b := &list[i]
		res.Books = append(res.Books, &pb.PriceBook{
			Version: b.Version, Hash: hex.EncodeToString(b.Hash[:]), Bytes: b.Bytes, IssuedAt: timestamppb.New(b.IssuedAt),
			CandidateId: b.CandidateID, ApprovedBy: b.DecidedBy,
		})
	}
	return res, nil
}

// GetPriceBook gives a book.
func (s *priceService) GetPriceBook(ctx context.Context, req *pb.GetPriceBookRequest) (*pb.PriceBook, error) {
	prices, err := s.prices()
	if err != nil {
		return nil, err
	}
	book, err := bookOf(ctx, prices, req.Hash)
	if err != nil {
		return nil, pricesError(ctx, err)
	}
	packed, err := pack(book.Marshal())
	if err != nil {
		return nil, err
	}
	hash := book.Hash()
	return &pb.PriceBook{Version: book.Version(), Hash: hex.EncodeToString(hash[:]), Bytes: int64(len(book.Marshal())), ContentGzip: packed}, nil
}

func bookOf(ctx context.Context, prices Prices, hash string) (*pricing.Book, error) {
	if hash == "" {
		return prices.InForce(ctx)
	}
	b, err := hex.DecodeString(hash)
	if err != nil || len(b) != len(candidate.Hash{}) {
		return nil, invalid("hash", "syntax", "must be 64 hexadecimal digits")
	}
	content, err := prices.Content(ctx, candidate.Hash(b))
	if err != nil {
		return nil, err
	}
	return pricing.ParseBook(content)
}

// ProposePrices makes a candidate.
func (s *priceService) ProposePrices(ctx context.Context, req *pb.ProposePricesRequest) (*pb.ProposePricesResponse, error) {
	prices, err := s.prices()
	if err != nil {
		return nil, err
	}
	content, err := unpack(req.BookGzip)
	if err != nil {
		return nil, invalid("book_gzip", "syntax", "must be a price book in gzip: %v", err)
	}
	p := &candidate.Proposal{Whole: req.Whole, Note: req.Note}
	if p.List, err = pricing.ParseBook(content); err != nil {
		return nil, invalid("book_gzip", "syntax", "must be a price book in gzip: %v", err)
	}
	if req.ValidFrom != nil {
		if !req.ValidFrom.IsValid() || req.ValidFrom.AsTime().Year() < 1970 || req.ValidFrom.AsTime().Year() > 2261 {
			return nil, invalid("valid_from", "range", "must be a time between 1970 and 2262")
		}
		p.ValidFrom = req.ValidFrom.AsTime()
	}
	c, changes, err := prices.Propose(ctx, s.s.event(ctx, nil), p)
	if err != nil {
		return nil, pricesError(ctx, err)
	}
	return &pb.ProposePricesResponse{
		Candidate: candidateMessage(&c), Added: int32(changes.Added), Changed: int32(changes.Changed),
		Unchanged: int32(changes.Unchanged), Missing: int32(changes.Missing),
	}, nil
}

// ListPriceCandidates lists candidates.
func (s *priceService) ListPriceCandidates(ctx context.Context, req *pb.ListPriceCandidatesRequest) (*pb.ListPriceCandidatesResponse, error) {
	prices, err := s.prices()
	if err != nil {
		return nil, err
	}
	switch req.State {
	case "", candidate.Proposed, candidate.Approved, candidate.Rejected, candidate.Published:
	default:
		return nil, invalid("state", "unknown", "must be proposed, approved, rejected or published")
	}
	list, err := prices.List(ctx, req.State)
	if err != nil {
		return nil, pricesError(ctx, err)
	}
	res := &pb.ListPriceCandidatesResponse{}
	for i := range list {
		res.Candidates = append(res.Candidates, candidateMessage(&list[i]))
	}
	return res, nil
}

// GetPriceCandidate gives a candidate.
func (s *priceService) GetPriceCandidate(ctx context.Context, req *pb.GetPriceCandidateRequest) (*pb.PriceCandidate, error) {
	prices, err := s.candidateOf(req.CandidateId)
	if err != nil {
		return nil, err
	}
	c, err := prices.Get(ctx, req.CandidateId)
	if err != nil {
		return nil, pricesError(ctx, err)
	}
	return candidateMessage(&c), nil
}

// ApprovePrices has a candidate published.
func (s *priceService) ApprovePrices(ctx context.Context, req *pb.DecidePricesRequest) (*pb.PriceCandidate, error) {
	return s.decide(ctx, req, true)
}

// RejectPrices ends a candidate.
func (s *priceService) RejectPrices(ctx context.Context, req *pb.DecidePricesRequest) (*pb.PriceCandidate, error) {
	return s.decide(ctx, req, false)
}

func (s *priceService) decide(ctx context.Context, req *pb.DecidePricesRequest, approve bool) (*pb.PriceCandidate, error) {
	prices, err := s.candidateOf(req.CandidateId)
	if err != nil {
		return nil, err
	}
	c, err := prices.Decide(ctx, s.s.event(ctx, nil), req.CandidateId, approve, req.Reason)
	if err != nil {
		return nil, pricesError(ctx, err)
	}
	return candidateMessage(&c), nil
}

// candidateOf checks the id of a candidate.
func (s *priceService) candidateOf(id string) (Prices, error) {
	prices, err := s.prices()
	if err != nil {
		return nil, err
	}
	if _, err := uuid.Parse(id); err != nil {
		return nil, invalid("candidate_id", "syntax", "must be a UUID")
	}
	return prices, nil
}

// simulatable checks that there is such a candidate. What it would have cost says
// something of prices that are the operator's to show.
func (s *priceService) simulatable(ctx context.Context, id string) error {
	if !principal(ctx).AllTenants {
		return errNotOperator
	}
	prices, err := s.candidateOf(id)
	if err != nil {
		return err
	}
	_, err = prices.Get(ctx, id)
	return pricesError(ctx, err)
}

// pricesError turns what the store says into the API's errors.
func pricesError(ctx context.Context, err error) error {
	var refused *InvalidError
	switch {
	case err == nil || errors.As(err, &refused):
		return err
	case errors.Is(err, candidate.ErrInvalid), errors.Is(err, pricing.ErrRow), errors.Is(err, pricing.ErrOverlap), errors.Is(err, pricing.ErrFormat):
		return invalid("book_gzip", "refused", "%v", err)
	case errors.Is(err, candidate.ErrNotFound):
		return ErrNotFound
	case errors.Is(err, candidate.ErrDecided), errors.Is(err, candidate.ErrStale), errors.Is(err, candidate.ErrFourEyes):
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	return classifyStore(ctx, "prices", err)
}

func candidateMessage(c *candidate.Candidate) *pb.PriceCandidate {
	m := &pb.PriceCandidate{
		CandidateId: c.ID, Version: c.Version, Hash: hex.EncodeToString(c.Hash[:]), Bytes: c.Bytes, Note: c.Note,
		ProposedBy: c.ProposedBy, ProposedAt: timestamppb.New(c.ProposedAt), State: c.State,
		DecidedBy: c.DecidedBy, DecidedAt: timestamp(c.DecidedAt), Reason: c.Reason, PublishedAt: timestamp(c.PublishedAt),
	}
	if c.Base != (candidate.Hash{}) {
		m.BaseHash = hex.EncodeToString(c.Base[:])
	}
	return m
}

func pack(content []byte) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	err := w.Close()
	return b.Bytes(), err
}

// errTooLong is a book that unpacks to more than one may hold.
var errTooLong = fmt.Errorf("it unpacks to more than %d bytes", pricing.MaxBookBytes)

func unpack(packed []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(r, pricing.MaxBookBytes+1))
	if err == nil && len(content) > pricing.MaxBookBytes {
		err = errTooLong
	}
	return content, err
}
