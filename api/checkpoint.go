package api

import (
	"context"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// The logs that checkpoints are of.
const (
	ledgerLog = "ledger"
	auditLog  = "audit"
)

// Checkpoints gives signed checkpoints and proofs. log is "ledger" or "audit".
// Errors match ErrNotFound for what was not published, and ErrUnavailable.
type Checkpoints interface {
	// Checkpoint is the newest, or that of a size.
	Checkpoint(ctx context.Context, log string, id tenant.ID, size int64) (*Checkpoint, error)
	// Checkpoints lists those with sizes below before (0: any), the newest first.
	Checkpoints(ctx context.Context, log string, id tenant.ID, before int64, limit int) ([]Checkpoint, error)
	// Inclusion proves entry seq in the tree of the size, with the entry's leaf hash.
	Inclusion(ctx context.Context, log string, id tenant.ID, seq, size int64) (leaf [32]byte, proof [][32]byte, err error)
	// Consistency proves that the tree of size to continues that of size from.
	Consistency(ctx context.Context, log string, id tenant.ID, from, to int64) ([][32]byte, error)
	// SigningKeys are the stated keys, in order of epoch.
	SigningKeys(ctx context.Context, log string, id tenant.ID) ([]*pb.SigningKey, error)
}

// Checkpoint is a published checkpoint.
type Checkpoint struct {
	Size         int64
	Root         [32]byte
	Note         string
	Cosignatures []string
	SignedAt     time.Time
}

// checkpointService serves tallystick.v1.CheckpointService.
type checkpointService struct {
	pb.UnimplementedCheckpointServiceServer
	s *Server
}

// logRequest is what every request of the service has.
type logRequest interface {
	GetTenantId() string
	GetLog() string
	GetInstallation() bool
}

// ask is whose log is asked for, and where.
func (c *checkpointService) ask(ctx context.Context, req logRequest) (store Checkpoints, log string, id tenant.ID, err error) {
	if store = c.s.deps.Checkpoints; store == nil {
		return nil, "", "", errUnimplemented
	}
	switch log = req.GetLog(); log {
	case "":
		log = ledgerLog
	case ledgerLog, auditLog:
	default:
		return nil, "", "", invalid("log", "one_of", "must be ledger or audit")
	}
	switch {
	case !req.GetInstallation():
		id, err = tenantOf(ctx, req.GetTenantId())
	case !principal(ctx).AllTenants:
		err = errNotOperator
	case req.GetTenantId() != "":
		err = invalid("tenant_id", "conflict", "must be empty beside installation")
	default:
		id = audit.Installation
	}
	return store, log, id, err
}

// ledgerServices read what is written in the ledger. While a partition is
// replayed they answer nothing of its tenants: it may yet turn out to be another
// ledger than was published.
var ledgerServices = []string{"ReportService", "LedgerService", "CheckpointService", "EvidenceService", "IngestService"}

// serving refuses to read a ledger that is being replayed.
func (s *Server) serving(ctx context.Context, method string, req any) error {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/tallystick.v1."), "/")
	r, ok := req.(interface{ GetTenantId() string })
	if s.deps.Serving == nil || !ok || !slices.Contains(ledgerServices, service) {
		return nil
	}
	id, err := tenantOf(ctx, r.GetTenantId())
	if err != nil {
		return nil // the method says what is wrong with it
	}
	return s.deps.Serving(ctx, id)
}

// GetCheckpoint answers with one checkpoint.
func (c *checkpointService) GetCheckpoint(ctx context.Context, req *pb.GetCheckpointRequest) (*pb.Checkpoint, error) {
	store, log, id, err := c.ask(ctx, req)
	if err != nil {
		return nil, err
	}
	if req.Size < 0 {
		return nil, invalid("size", "range", "must not be negative")
	}
	cp, err := store.Checkpoint(ctx, log, id, req.Size)
	if err != nil {
		return nil, classifyStore(ctx, "read the checkpoint", err)
	}
	return checkpointMessage(log, id, cp), nil
}

// ListCheckpoints pages through checkpoints.
func (c *checkpointService) ListCheckpoints(ctx context.Context, req *pb.ListCheckpointsRequest) (*pb.ListCheckpointsResponse, error) {
	store, log, id, err := c.ask(ctx, req)
	if err != nil {
		return nil, err
	}
	size, err := pageSize(req.PageSize)
	if err != nil {
		return nil, err
	}
	question, before := "checkpoints/"+log+"/"+string(id), int64(0)
	if cursor, err := c.s.pages.open(question, req.PageToken); err != nil {
		return nil, err
	} else if cursor != "" {
		if before, err = strconv.ParseInt(cursor, 10, 64); err != nil {
			return nil, err
		}
	}
	list, err := store.Checkpoints(ctx, log, id, before, size+1)
	if err != nil {
		return nil, classifyStore(ctx, "read checkpoints", err)
	}
	res := &pb.ListCheckpointsResponse{}
	for i := range list[:min(size, len(list))] {
		res.Checkpoints = append(res.Checkpoints, checkpointMessage(log, id, &list[i]))
	}
	if len(list) > size {
		res.NextPageToken = c.s.pages.token(question, strconv.FormatInt(list[size-1].Size, 10))
	}
	return res, nil
}

// GetInclusionProof proves an entry.
func (c *checkpointService) GetInclusionProof(ctx context.Context, req *pb.GetInclusionProofRequest) (*pb.InclusionProof, error) {
	store, log, id, err := c.ask(ctx, req)
	switch {
	case err != nil:
		return nil, err
	case req.Seq < 1:
		return nil, invalid("seq", "range", "must be at least 1")
	case req.Size < 0 || req.Size > 0 && req.Size < req.Seq:
		return nil, invalid("size", "range", "must be 0 or not below seq")
	}
	m := &pb.InclusionProof{TenantId: string(id), Log: log, Seq: req.Seq, Size: req.Size}
	if req.Size == 0 {
		cp, err := store.Checkpoint(ctx, log, id, 0)
		if err != nil {
			return nil, classifyStore(ctx, "read the checkpoint", err)
		}
		m.Size, m.Checkpoint = cp.Size, checkpointMessage(log, id, cp)
	} else if cp, err := store.Checkpoint(ctx, log, id, req.Size); err == nil {
		m.Checkpoint = checkpointMessage(log, id, cp)
	}
	leaf, proof, err := store.Inclusion(ctx, log, id, req.Seq, m.Size)
	if err != nil {
		return nil, classifyStore(ctx, "prove inclusion", err)
	}
	m.LeafHash, m.Hashes = hex.EncodeToString(leaf[:]), hexHashes(proof)
	return m, nil
}

// GetConsistencyProof proves that a tree continues another.
func (c *checkpointService) GetConsistencyProof(ctx context.Context, req *pb.GetConsistencyProofRequest) (*pb.ConsistencyProof, error) {
	store, log, id, err := c.ask(ctx, req)
	switch {
	case err != nil:
		return nil, err
	case req.From < 1:
		return nil, invalid("from", "range", "must be at least 1")
	case req.To < 0 || req.To > 0 && req.To < req.From:
		return nil, invalid("to", "range", "must be 0 or not below from")
	}
	m := &pb.ConsistencyProof{TenantId: string(id), Log: log, From: req.From, To: req.To}
	if m.To == 0 {
		cp, err := store.Checkpoint(ctx, log, id, 0)
		if err != nil {
			return nil, classifyStore(ctx, "read the checkpoint", err)
		}
		m.To = cp.Size
	}
	proof, err := store.Consistency(ctx, log, id, m.From, m.To)
	if err != nil {
		return nil, classifyStore(ctx, "prove consistency", err)
	}
	m.Hashes = hexHashes(proof)
	return m, nil
}

// ListSigningKeys answers with the statements of keys.
func (c *checkpointService) ListSigningKeys(ctx context.Context, req *pb.ListSigningKeysRequest) (*pb.ListSigningKeysResponse, error) {
	store, log, id, err := c.ask(ctx, req)
	if err != nil {
		return nil, err
	}
	keys, err := store.SigningKeys(ctx, log, id)
	if err != nil {
		return nil, classifyStore(ctx, "read signing keys", err)
	}
	return &pb.ListSigningKeysResponse{Keys: keys}, nil
}

func checkpointMessage(log string, id tenant.ID, cp *Checkpoint) *pb.Checkpoint {
	return &pb.Checkpoint{
		TenantId: string(id), Log: log, Size: cp.Size, RootHash: hex.EncodeToString(cp.Root[:]), Note: cp.Note,
		Cosignatures: cp.Cosignatures, SignedAt: timestamppb.New(cp.SignedAt),
	}
}

func hexHashes(hashes [][32]byte) []string {
	list := make([]string, len(hashes))
	for i := range hashes {
		list[i] = hex.EncodeToString(hashes[i][:])
	}
	return list
}
