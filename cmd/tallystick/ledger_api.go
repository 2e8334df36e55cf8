package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/ledger/verify"
)

// ledgerAPI asks a running server, and gives what it answers an exit code.
type ledgerAPI struct{ *client.Client }

// call makes a request of a method; body nil is a GET.
func (c *ledgerAPI) call(ctx context.Context, path string, body, answer proto.Message) error {
	return answered(c.Call(ctx, path, body, answer))
}

// answered gives an error of the client the exit code that it means.
func answered(err error) error {
	var refused *client.ProblemError
	var away *client.UnreachableError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return &exitError{problemCode(refused.Status), err}
	case errors.As(err, &away), errors.Is(err, client.ErrStalled):
		return &exitError{exitUnavailable, err}
	}
	return err
}

// printJSONLine prints a message as one line of JSON.
func printJSONLine(w io.Writer, m proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, string(b))
	return err
}

// problemCode is the exit code of a refusal.
func problemCode(status int) int {
	switch status {
	case http.StatusBadRequest:
		return exitUsage
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitAuth
	case http.StatusNotFound, http.StatusGone:
		return exitNotFound
	case http.StatusConflict:
		return exitConflict
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusNotImplemented:
		return exitUnavailable
	}
	return exitFailure
}

// tenants lists all tenants that the token may read.
func (c *ledgerAPI) tenants(ctx context.Context) ([]string, error) {
	list, err := c.Tenants(ctx)
	var ids []string
	for _, t := range list {
		ids = append(ids, t.TenantID)
	}
	return ids, answered(err)
}

// errEnough ends a reading of entries that has what it wants.
var errEnough = errors.New("enough")

// entries calls fn with entries until it returns false.
func (c *ledgerAPI) entries(ctx context.Context, q client.EntryQuery, fn func(*client.Entry) (bool, error)) error {
	err := c.QueryEntries(ctx, q, func(e *client.Entry) error {
		more, err := fn(e)
		if err == nil && !more {
			err = errEnough
		}
		return err
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return answered(err)
}

// evidence downloads an evidence package into the meter.
func (c *ledgerAPI) evidence(ctx context.Context, x *exportFlags, m *packageMeter) (from, to, size int64, err error) {
	q := url.Values{"tenant_id": {x.tenant}}
	for name, value := range map[string]string{"from": x.from, "to": x.to, "time_zone": x.zone} {
		if value != "" {
			q.Set(name, value)
		}
	}
	for _, kept := range x.kept {
		q.Add("kept", strconv.FormatInt(kept, 10))
	}
	err = c.Download(ctx, "/v1/ledger/evidence", q, func(h http.Header) io.Writer {
		_, _ = fmt.Sscanf(h.Get(api.EvidenceHeader), "from_seq=%d; to_seq=%d; checkpoint_size=%d", &from, &to, &size) // zeros show no bar
		m.first, m.last = from, to
		return m
	})
	return from, to, size, answered(err)
}

// export downloads a plain export into the meter. What the head says now is what
// the bar goes by.
func (c *ledgerAPI) export(ctx context.Context, id string, from, to int64, m *packageMeter) error {
	h, err := c.Head(ctx, id)
	if err != nil {
		return answered(err)
	}
	m.first, m.last = max(from, 1), int64(h.Seq)
	if to > 0 {
		m.last = min(to, m.last)
	}
	q := url.Values{"tenant_id": {id}, "from_seq": {strconv.FormatInt(from, 10)}, "to_seq": {strconv.FormatInt(to, 10)}}
	return answered(c.Download(ctx, "/v1/ledger:export", q, func(http.Header) io.Writer { return m }))
}

// verifyChunk is how many entries one request asks to be verified, so that
// there is progress to show.
const verifyChunk = 250_000

// verify has the server check a range, chunk by chunk. Each chunk is anchored
// in the last entry of the one before, and its tree goes on where that one's
// ended; the last one goes to the head. Checkpoints from outside are held
// against the tree where a chunk ends with them.
func (c *ledgerAPI) verify(ctx context.Context, o verify.Options) (verify.Report, error) {
	h, err := c.Head(ctx, o.Tenant)
	noHead := client.StatusOf(err) == http.StatusNotFound // the server says whether that is a fault
	if err != nil && !noHead {
		return verify.Report{}, answered(err)
	}
	last := int64(h.Seq)
	if o.To > 0 {
		last = min(o.To, last)
	}
	v := &chunked{c: c, o: &o, first: max(o.From, 1), last: last, kept: verify.NewKept(o.Checkpoints)}
	v.sum = verify.Report{Verdict: verify.Intact, Tenant: o.Tenant, From: v.first, To: last, MACsChecked: true}
	if err := v.run(ctx); err != nil {
		return v.sum, answered(err)
	}
	v.sum.NoTenant = noHead && v.sum.Verdict == verify.Unknown
	return v.sum, nil
}

// chunked is a verification by the server in chunks.
type chunked struct {
	c           *ledgerAPI
	o           *verify.Options
	first, last int64
	kept        *verify.Kept
	sum         verify.Report
}

func (v *chunked) run(ctx context.Context) error {
	var tree []string
	for from := v.first; ; {
		to := v.kept.Next(from, min(from+verifyChunk-1, v.last))
		q := client.VerifyQuery{TenantID: v.o.Tenant, FromSeq: client.Int(from), ToSeq: client.Int(to), Tree: tree}
		end := to >= v.last
		if end {
			q.ToSeq = client.Int(v.o.To)
		}
		m, err := v.c.VerifyRange(ctx, q)
		if err != nil {
			return err
		}
		v.add(m)
		if end { // the ledger may have grown since its head was asked for
			to = max(to, int64(m.ToSeq))
		}
		if tree = m.Tree; v.sum.Verdict == verify.Intact && v.first == 1 {
			v.hold(to, end && v.o.To == 0, tree)
		}
		if v.o.Progress != nil {
			v.o.Progress(min(to, v.last)-v.first+1, v.last-v.first+1)
		}
		if v.sum.Verdict != verify.Intact || end {
			v.sum.To = max(v.last, int64(m.ToSeq))
			return nil
		}
		from = to + 1
	}
}

// add takes the verdict on a chunk.
func (v *chunked) add(m *client.Verification) {
	s := &v.sum
	s.Entries += int64(m.Entries)
	s.Covered = max(s.Covered, int64(m.CheckpointSize))
	s.Verdict, s.FirstBad, s.Reason, s.Message = verify.Verdict(m.Verdict), int64(m.FirstBadSeq), verify.Reason(m.Reason), m.Message
	s.Detector = verify.Detector(m.Detector)
	if b, err := hex.DecodeString(m.HeadHash); err == nil {
		copy(s.HeadHash[:], b)
	}
}

// hold compares the tree up to entry `to` with what was kept.
func (v *chunked) hold(to int64, whole bool, tree []string) {
	hashes, err := verify.ParseTree(tree)
	if err == nil {
		err = v.kept.Hold(to, whole, hashes)
	}
	if seq, reason, message, ok := verify.Fault(err); ok {
		v.sum.Verdict, v.sum.FirstBad, v.sum.Reason, v.sum.Message, v.sum.Detector = verify.Broken, seq, reason, message, verify.ByRoot
	} else if err != nil {
		v.sum.Verdict, v.sum.Message = verify.Unknown, err.Error()
	}
	v.sum.Covered = max(v.sum.Covered, v.kept.Covered())
}
