// Package api is how people and programs read Tallystick: hop 7 of an event's
// life (docs/architecture.md).
//
// It serves the services of api/proto by gRPC and, in the same process, as REST
// with JSON. It promises that every answer is about tenants that the caller may
// act for; that an answer of a report says which part of the ledger it covers;
// that money is a decimal string, never a float, and null where there is no
// price; that an error is a documented reason with the fields that are wrong,
// and that its cause stays in the log under the request's id. It never writes
// to the ledger, and holds no connection of its own: what it reads from stands
// in Deps, one small interface each.
package api

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/transport"
	"github.com/tallystick/tallystick/ledger/chain"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Authenticator says who a bearer token belongs to. authn.ErrUnauthenticated
// refuses it; any other error means that nobody can tell now.
type Authenticator interface {
	Authenticate(ctx context.Context, token string) (authn.Principal, error)
}

// LedgerReader reads one tenant's ledger. Methods may be called from many
// goroutines. Errors: ErrNotFound, ErrUnavailable, and those of the context.
type LedgerReader interface {
	// Head is the end of the tenant's chain; ErrNotFound for a tenant that the
	// ledger does not know.
	Head(ctx context.Context, id tenant.ID) (Head, error)
	// Entries returns up to limit entries in order of number, from number
	// `from` on, or from `from` downwards; the first or last one when from is 0.
	Entries(ctx context.Context, id tenant.ID, from int64, limit int, descending bool) ([]StoredEntry, error)
	// Event is the entry that carries an event id, nil when there is none.
	Event(ctx context.Context, id tenant.ID, eventID string) (*StoredEntry, error)
}

// Conflicts counts the entries that rejected other content under an event id.
type Conflicts interface {
	Conflicts(ctx context.Context, id tenant.ID, eventID string) (int64, error)
}

// Head is the end of a tenant's chain.
type Head struct {
	Seq        int64
	Chain      chain.Hash
	KeyEpoch   uint32
	ReceivedAt time.Time
}

// StoredEntry is an entry as the ledger has it.
type StoredEntry struct {
	Seq int64
	chain.Sealed
}

// Verifier checks a range of a tenant's ledger: entries from_seq to to_seq, both
// included; 0 is the first and the last. An error means that no verdict was
// reached because of the caller (its context, its range); that evidence is
// missing is a verdict.
type Verifier interface {
	Verify(ctx context.Context, id tenant.ID, req *pb.VerifyLedgerRequest) (*pb.VerifyLedgerResponse, error)
}

// Comparer holds a tenant's ledger against what else has a copy of a part of it.
type Comparer interface {
	// Compare returns the first difference of each comparison. ErrUnavailable when
	// a store is away, or the reports have not caught up with the ledger.
	Compare(ctx context.Context, id tenant.ID) ([]*pb.LedgerDifference, error)
}

// Tenants creates and lists tenants.
type Tenants interface {
	// Create makes those of the tenants that do not exist and returns them. When
	// it returns, they can be written for.
	Create(ctx context.Context, ids []tenant.ID) (created []tenant.ID, err error)
	// List returns up to limit tenants in order of id, those after `after`.
	List(ctx context.Context, after tenant.ID, limit int) ([]TenantInfo, error)
}

// TenantInfo is what is told of a tenant.
type TenantInfo struct {
	ID        tenant.ID
	CreatedAt time.Time // zero when not known
	Partition int32
}

// Pipeline tells how the hops of this process are.
type Pipeline interface {
	Pipeline(ctx context.Context) (*pb.Pipeline, error)
}

// Dependency is something the process needs to be ready.
type Dependency struct {
	Name string
	// Check returns nil when the dependency answers. It must obey ctx.
	Check func(ctx context.Context) error
}

// Deps is what a Server serves from. A nil Reports, Ledger, Verifier, Evidence, Tenants,
// Subjects, Rerates, Keys or Pipeline makes its methods answer UNIMPLEMENTED: that part runs elsewhere.
type Deps struct {
	Auth Authenticator
	// Audit is where what changes something, and what is refused, is kept. It is
	// needed: without it nothing is served.
	Audit   Auditor
	Reports Reports
	Ledger  LedgerReader
	// Conflicts is where conflicts are counted; nil is the Ledger, when it can.
	// A store with an index for it is much faster than the ledger.
	Conflicts Conflicts
	Verifier  Verifier
	Comparer  Comparer
	Evidence  Evidence
	Tenants   Tenants
	Subjects  Subjects
	Rerates   Rerates
	// Prices are those of the installation.
	Prices   Prices
	Keys     Keys
	Pipeline Pipeline
	Tokens   Tokens
	Secrets  Secrets
	// Agents registers GPU agents; nil where no pepper of theirs is known.
	Agents Agents
	// Providers is what tenants let the proxy do.
	Providers Providers
	// Connections are the tenants' to what customers own.
	Connections Connections
	// Mapping are the tenants' rules of whom calls are for.
	Mapping  Mapping
	AuditLog AuditLog
	// AuditExporter and LedgerExporter make logs into files.
	AuditExporter, LedgerExporter Exporter
	// Checkpoints are those of both logs.
	Checkpoints Checkpoints
	// Serving returns nil when the tenant's ledger may be served, ErrUnavailable
	// while it is replayed after a restore; nil serves all.
	Serving func(ctx context.Context, id tenant.ID) error
	Ready   []Dependency
	Logger  *slog.Logger // nil discards
}

// Server serves the API. All methods may be called from many goroutines, but
// Mount only before HTTPHandler.
type Server struct {
	deps   Deps
	opts   Options
	log    *slog.Logger
	pages  pager
	health *health.Server
	mux    *http.ServeMux
}

// New makes a Server.
func New(deps Deps, opts Options) (*Server, error) {
	opts = opts.withDefaults()
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	if deps.Auth == nil {
		return nil, errors.New("api: an authenticator is needed")
	}
	if deps.Audit == nil {
		return nil, errors.New("api: an audit log is needed")
	}
	if deps.Conflicts == nil {
		deps.Conflicts, _ = deps.Ledger.(Conflicts)
	}
	s := &Server{deps: deps, opts: opts, log: deps.Logger, health: health.NewServer(), mux: http.NewServeMux()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	key := opts.PageKey
	if key == ([32]byte{}) {
		rand.Read(key[:]) // crypto/rand.Read never returns an error
	}
	s.pages = newPager(key)
	if err := s.routes(); err != nil {
		return nil, err
	}
	return s, nil
}

// Mount serves a further handler beside the API under a pattern of
// http.ServeMux, such as the ingest edge or the page. The handler answers for
// itself: authentication, limits and headers of the API do not apply to it.
func (s *Server) Mount(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// HTTPHandler serves REST, /healthz, /readyz and what was mounted.
func (s *Server) HTTPHandler() http.Handler { return s.mux }

// HTTPServer is a server of HTTPHandler with the limits that a listener in the
// open needs. The caller gives it a listener and shuts it down.
func (s *Server) HTTPServer() *http.Server {
	return &http.Server{
		Handler:           transport.HSTS(s.HTTPHandler()),
		TLSConfig:         s.opts.TLS,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// RegisterGRPC serves the report, ledger and admin services, health and
// reflection on s, which must have been made with ServerOptions. The
// IngestService is the edge's: it asks this Server's GetEvent.
func (s *Server) RegisterGRPC(r *grpc.Server) {
	s.register(r)
	s.registerHealth(r)
}

// register registers the services, for gRPC and for the gateway.
func (s *Server) register(r grpc.ServiceRegistrar) {
	pb.RegisterReportServiceServer(r, &reportService{s: s})
	pb.RegisterLedgerServiceServer(r, &ledgerService{s: s})
	pb.RegisterEvidenceServiceServer(r, &evidenceService{s: s})
	pb.RegisterAdminServiceServer(r, &adminService{s: s})
	pb.RegisterSubjectServiceServer(r, &subjectService{s: s})
	pb.RegisterPriceServiceServer(r, &priceService{s: s})
	pb.RegisterKeyServiceServer(r, &keyService{s: s})
	pb.RegisterAccessServiceServer(r, &accessService{s: s})
	pb.RegisterAgentServiceServer(r, &agentService{s: s})
	pb.RegisterProviderServiceServer(r, &providerService{s: s})
	pb.RegisterAuditServiceServer(r, &auditService{s: s})
	pb.RegisterCheckpointServiceServer(r, &checkpointService{s: s})
	pb.RegisterConnectionServiceServer(r, &connectionService{s: s})
	pb.RegisterMappingServiceServer(r, &mappingService{s: s})
}
