package api

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Subjects keeps persons and what is confidential of a tenant. Each method that
// shows something sealed or changes something takes the audit row to write,
// complete but for its outcome: nothing is shown and nothing changed unless the
// row is durable. Errors: ErrNotFound, ErrUnavailable, ErrDestroyed.
type Subjects interface {
	// Show opens the identity behind a pseudonym.
	Show(ctx context.Context, row audit.Event, pseudonym string) (Subject, error)
	// Find computes the pseudonym of an identity, and gives what is kept of it
	// but the identity. It sets the row's resource.
	Find(ctx context.Context, row audit.Event, identity string) (Subject, error)
	// Erase takes the identity away; said twice, it does no harm.
	Erase(ctx context.Context, row audit.Event, pseudonym string) (Subject, error)
	// Readmit forgets that a person was erased; ErrNotFound where none was.
	Readmit(ctx context.Context, row audit.Event, pseudonym string) (Subject, error)
	// Open opens the sealed tags of an entry; ErrNotFound when there is no entry.
	Open(ctx context.Context, row audit.Event, seq int64) (OpenedEntry, error)
	// TagKeys are the keys of the tenant's confidential tags and since when; zero
	// when the tenant has never set any.
	Confidential(ctx context.Context, id tenant.ID) (keys []string, set time.Time, err error)
	// SetConfidential replaces them and returns when.
	SetConfidential(ctx context.Context, row audit.Event, keys []string) (time.Time, error)
}

// States of a Subject.
const (
	SubjectKnown   = "known"
	SubjectErased  = "erased"
	SubjectUnknown = "unknown"
)

// Subject is what is kept of a person.
type Subject struct {
	Pseudonym string
	State     string
	// Identity is what the producer called the person, where it was opened.
	Identity string
	Opened   bool
	// FirstSeen and LastSeen are UTC days, zero when there are none.
	FirstSeen, LastSeen time.Time
	ErasedAt            time.Time
}

// OpenedEntry is what was sealed in an entry.
type OpenedEntry struct {
	EventID string
	Tags    []event.Tag
}

// Limits of requests.
const (
	maxReasonBytes    = 500
	maxConfidential   = 32
	pseudonymDigits   = 32
	erasureHorizon    = 30 * 24 * time.Hour // the longest retention Kafka is given
	confidentialDelay = time.Minute         // ingest.ConfidentialMaxAge
)

// subjectService serves tallystick.v1.SubjectService.
type subjectService struct {
	pb.UnimplementedSubjectServiceServer
	s *Server
}

// enter checks what every method checks first: that this process serves it, and
// the tenant. The scope was checked before (access.go).
func (s *subjectService) enter(ctx context.Context, tenantID string) (tenant.ID, error) {
	if s.s.deps.Subjects == nil {
		return "", errUnimplemented
	}
	return tenantOf(ctx, tenantID)
}

// row is the audit row of what the caller is about to do to the tenant.
func (s *subjectService) row(ctx context.Context, id tenant.ID, action, resource, reason string) audit.Event {
	ev := s.s.event(ctx, nil)
	ev.Tenant, ev.Action, ev.Resource, ev.Reason = id, action, resource, reason
	return ev
}

// GetSubject shows the identity behind a pseudonym.
func (s *subjectService) GetSubject(ctx context.Context, req *pb.GetSubjectRequest) (*pb.Subject, error) {
	id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	if err := checkPseudonym(req.Pseudonym); err != nil {
		return nil, err
	}
	row := s.row(ctx, id, "subject.show", "subject/"+req.Pseudonym, "")
	return subjectMessage(id)(s.s.deps.Subjects.Show(ctx, row, req.Pseudonym))
}

// FindSubject computes the pseudonym of an identity. Linking a name to what a
// person did is as much as seeing the name: it needs the same scope.
func (s *subjectService) FindSubject(ctx context.Context, req *pb.FindSubjectRequest) (*pb.Subject, error) {
	id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	if req.Identity == "" || !event.ValidText(req.Identity, event.MaxValueBytes) {
		return nil, invalid("identity", "syntax", "must be text of 1 to %d bytes", event.MaxValueBytes)
	}
	row := s.row(ctx, id, "subject.find", "", "")
	return subjectMessage(id)(s.s.deps.Subjects.Find(ctx, row, req.Identity))
}

// EraseSubject takes the identity behind a pseudonym away.
func (s *subjectService) EraseSubject(ctx context.Context, req *pb.EraseSubjectRequest) (*pb.Subject, error) {
	id, err := s.enterChange(ctx, req.TenantId, req.Pseudonym, req.Reason)
	if err != nil {
		return nil, err
	}
	row := s.row(ctx, id, "subject.erase", "subject/"+req.Pseudonym, req.Reason)
	return subjectMessage(id)(s.s.deps.Subjects.Erase(ctx, row, req.Pseudonym))
}

// ReadmitSubject forgets that a person was erased.
func (s *subjectService) ReadmitSubject(ctx context.Context, req *pb.ReadmitSubjectRequest) (*pb.Subject, error) {
	id, err := s.enterChange(ctx, req.TenantId, req.Pseudonym, req.Reason)
	if err != nil {
		return nil, err
	}
	row := s.row(ctx, id, "subject.readmit", "subject/"+req.Pseudonym, req.Reason)
	return subjectMessage(id)(s.s.deps.Subjects.Readmit(ctx, row, req.Pseudonym))
}

func (s *subjectService) enterChange(ctx context.Context, tenantID, pseudonym, reason string) (tenant.ID, error) {
	id, err := s.enter(ctx, tenantID)
	if err != nil {
		return "", err
	}
	if err := checkPseudonym(pseudonym); err != nil {
		return "", err
	}
	if reason == "" || !event.ValidText(reason, maxReasonBytes) {
		return "", invalid("reason", "required", "must say why, in 1 to %d bytes, without the name", maxReasonBytes)
	}
	return id, nil
}

// OpenEntry shows the sealed tags of an entry.
func (s *subjectService) OpenEntry(ctx context.Context, req *pb.OpenEntryRequest) (*pb.OpenedEntry, error) {
	id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	if req.Seq < 1 {
		return nil, invalid("seq", "range", "must be at least 1")
	}
	row := s.row(ctx, id, "entry.open", fmt.Sprintf("entry/%d", req.Seq), "")
	opened, err := s.s.deps.Subjects.Open(ctx, row, req.Seq)
	if err != nil {
		return nil, err
	}
	m := &pb.OpenedEntry{TenantId: string(id), Seq: req.Seq, EventId: opened.EventID, Tags: map[string]string{}}
	for _, t := range opened.Tags {
		m.Tags[t.Key] = t.Value
	}
	return m, nil
}

// GetConfidentialTags says which tags the tenant keeps confidential.
func (s *subjectService) GetConfidentialTags(ctx context.Context, req *pb.GetConfidentialTagsRequest) (*pb.ConfidentialTags, error) {
	id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	keys, set, err := s.s.deps.Subjects.Confidential(ctx, id)
	if err != nil {
		return nil, err
	}
	return confidentialMessage(id, keys, set), nil
}

// SetConfidentialTags replaces the list.
func (s *subjectService) SetConfidentialTags(ctx context.Context, req *pb.SetConfidentialTagsRequest) (*pb.ConfidentialTags, error) {
	id, err := s.enter(ctx, req.TenantId)
	if err != nil {
		return nil, err
	}
	keys, err := checkTagKeys(req.TagKeys)
	if err != nil {
		return nil, err
	}
	row := s.row(ctx, id, "confidential.set", "confidential-tags", fmt.Sprintf("%q", keys))
	set, err := s.s.deps.Subjects.SetConfidential(ctx, row, keys)
	if err != nil {
		return nil, err
	}
	return confidentialMessage(id, keys, set), nil
}

func confidentialMessage(id tenant.ID, keys []string, set time.Time) *pb.ConfidentialTags {
	m := &pb.ConfidentialTags{TenantId: string(id), TagKeys: keys, SetAt: timestamp(set)}
	if !set.IsZero() {
		m.EffectiveAt = timestamppb.New(set.Add(confidentialDelay))
	}
	return m
}

// checkTagKeys sorts the keys and leaves out repetitions.
func checkTagKeys(keys []string) ([]string, error) {
	if len(keys) > maxConfidential {
		return nil, invalid("tag_keys", "range", "at most %d", maxConfidential)
	}
	for i, k := range keys {
		if k == "" || !event.ValidText(k, event.MaxValueBytes) {
			return nil, invalid(fmt.Sprintf("tag_keys[%d]", i), "syntax", "must be text of 1 to %d bytes", event.MaxValueBytes)
		}
	}
	return sortedSet(keys), nil
}

func checkPseudonym(s string) error {
	ok := len(s) == pseudonymDigits
	for _, c := range []byte(s) {
		ok = ok && ('0' <= c && c <= '9' || 'a' <= c && c <= 'f')
	}
	if !ok {
		return invalid("pseudonym", "syntax", "must be %d hexadecimal digits in lower case", pseudonymDigits)
	}
	return nil
}

// subjectMessage makes the answer of what a method of Subjects returned.
func subjectMessage(id tenant.ID) func(Subject, error) (*pb.Subject, error) {
	return func(s Subject, err error) (*pb.Subject, error) {
		if err != nil {
			return nil, err
		}
		m := &pb.Subject{
			TenantId: string(id), Pseudonym: s.Pseudonym, State: s.State, FirstSeen: day(s.FirstSeen), LastSeen: day(s.LastSeen),
			ErasedAt: timestamp(s.ErasedAt),
		}
		if s.Opened {
			m.Identity = &s.Identity
		}
		if !s.ErasedAt.IsZero() {
			m.ForgottenBy = timestamppb.New(s.ErasedAt.Add(erasureHorizon))
		}
		return m, nil
	}
}

// day is a UTC day, empty for the zero time.
func day(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.DateOnly)
}
