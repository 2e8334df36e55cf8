package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/evidence"
	"github.com/tallystick/tallystick/ledger/pgread"
	"github.com/tallystick/tallystick/ledger/verify"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// auditPage is how many rows are read at once.
const auditPage = 1000

// auditExporter writes export files of the audit log for the API.
type auditExporter struct{ log *audit.Log }

var _ api.Exporter = auditExporter{}

// Export implements api.Exporter.
func (e auditExporter) Export(ctx context.Context, id tenant.ID, from, to int64, w io.Writer) error {
	_, err := evidence.ExportAudit(ctx, auditStore{e.log, id}, string(id), from, to, w, nil)
	return exportError(err)
}

// ledgerExporter writes export files of ledgers for the API, as
// postgres.RoleApp.
type ledgerExporter struct{ db *postgres.DB }

var _ api.Exporter = ledgerExporter{}

// Export implements api.Exporter.
func (e ledgerExporter) Export(ctx context.Context, id tenant.ID, from, to int64, w io.Writer) error {
	_, err := evidence.Export(ctx, pgread.New(e.db, id), string(id), from, to, w, nil)
	return exportError(err)
}

func exportError(err error) error {
	if errors.Is(err, evidence.ErrRange) {
		return fmt.Errorf("%w: %w", api.ErrNotFound, err)
	}
	return err
}

// auditStore is a tenant's audit log as the verifier reads it, from Postgres.
type auditStore struct {
	log *audit.Log
	id  tenant.ID
}

// Ends implements verify.Source.
func (s auditStore) Ends(ctx context.Context) (e verify.Ends, err error) {
	seq, chain, err := s.log.Head(ctx, s.id)
	if err != nil || seq == 0 {
		return e, err
	}
	rows, err := s.log.Rows(ctx, s.id, 0, 1, true)
	if err != nil || len(rows) == 0 {
		return e, err
	}
	// The head was read first: what was written since is not part of it.
	return verify.Ends{HasHead: true, Seq: seq, Chain: chain, LastSeq: min(rows[0].Seq, seq), Epoch: int64(rows[0].KeyEpoch)}, nil
}

// Rows implements verify.Source.
func (s auditStore) Rows(ctx context.Context, from, to int64, fn func(*verify.Row) error) error {
	for from <= to {
		rows, err := s.log.Rows(ctx, s.id, from, auditPage, false)
		if err != nil || len(rows) == 0 {
			return err
		}
		for i := range rows {
			r := &rows[i]
			if r.Seq > to {
				return nil
			}
			if err := fn(&verify.Row{Seq: r.Seq, Epoch: int64(r.KeyEpoch), Canonical: r.Canonical, Chain: r.Chain[:], MAC: r.MAC[:]}); err != nil {
				return err
			}
		}
		from = rows[len(rows)-1].Seq + 1
	}
	return nil
}

// auditEvents calls fn with pages of an audit log until it returns false.
func (c *ledgerAPI) auditEvents(ctx context.Context, q url.Values, fn func(*pb.ListAuditEventsResponse) (bool, error)) error {
	for {
		var page pb.ListAuditEventsResponse
		if err := c.call(ctx, "/v1/audit?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		more, err := fn(&page)
		if err != nil || !more || page.NextPageToken == "" {
			return err
		}
		q.Set("page_token", page.NextPageToken)
	}
}

// auditAPI is an audit log as the API gives it, for verification.
type auditAPI struct {
	api *ledgerAPI
	of  url.Values // tenant_id or installation
}

func (s auditAPI) query(from int64, size int, descending bool) url.Values {
	q := url.Values{
		"from_seq": {strconv.FormatInt(from, 10)}, "page_size": {strconv.Itoa(size)}, "descending": {strconv.FormatBool(descending)},
	}
	for k, v := range s.of {
		q[k] = v
	}
	return q
}

// Ends implements verify.Source.
func (s auditAPI) Ends(ctx context.Context) (e verify.Ends, err error) {
	var page pb.ListAuditEventsResponse
	if err := s.api.call(ctx, "/v1/audit?"+s.query(0, 1, true).Encode(), nil, &page); err != nil {
		return e, err
	}
	chain, err := hex.DecodeString(page.HeadChain)
	if err != nil || len(chain) != verify.HashSize {
		return e, errors.New("the head's chain hash is not one")
	}
	if page.HeadSeq == 0 {
		return e, nil
	}
	e = verify.Ends{HasHead: true, Seq: page.HeadSeq, Chain: [verify.HashSize]byte(chain)}
	if len(page.Events) > 0 {
		e.LastSeq, e.Epoch = min(page.Events[0].Seq, page.HeadSeq), page.Events[0].KeyEpoch
	}
	return e, nil
}

// Rows implements verify.Source.
func (s auditAPI) Rows(ctx context.Context, from, to int64, fn func(*verify.Row) error) error {
	return s.api.auditEvents(ctx, s.query(from, auditPage, false), func(page *pb.ListAuditEventsResponse) (bool, error) {
		for _, e := range page.Events {
			if e.Seq > to {
				return false, nil
			}
			chain, err := hex.DecodeString(e.ChainHash)
			if err != nil {
				return false, err
			}
			mac, err := hex.DecodeString(e.Mac)
			if err != nil {
				return false, err
			}
			if err := fn(&verify.Row{Seq: e.Seq, Epoch: e.KeyEpoch, Canonical: e.Canonical, Chain: chain, MAC: mac}); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}
