package ledger

import (
	"strings"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
)

// SubjectRow is what one batch tells of a person: the sealed identity behind a
// pseudonym, and a day on which it was seen. A batch may hold several rows of
// one person.
//
// The store keeps the identity of a person that it does not know, moves the last
// day of one that it does, and leaves one alone that was erased: an identity
// that was erased does not come back with the next event.
type SubjectRow struct {
	Tenant    string
	Pseudonym string
	// Identity is sealed; the writer has no key for it.
	Identity []byte
	// Day is the UTC day of receipt, in days since 1970-01-01.
	Day int32
}

// subjects remembers for which persons a row has gone to the store today, so
// that a batch that names nobody new writes nothing. It forgets, which costs a
// row that changes nothing, and never the other way.
type subjects struct {
	young, old map[subjectKey]int32 // day of the last row
}

type subjectKey struct {
	tenant    uint32 // tenantState.number
	pseudonym [32]byte
}

// maxSubjects bounds the persons of one generation. Two generations of all
// twelve partitions are some 50 MB at the worst.
const maxSubjects = 1 << 15

const secondsPerDay = int64(24 * time.Hour / time.Second)

// note adds a row for the event's person, unless the store has been told today.
// What is no pseudonym names nobody: the log can be written by others, and the
// store would refuse the batch.
func (s *subjects) note(b *builder, t *tenantState, ev *event.Event, sealed []byte) {
	if len(sealed) == 0 || !isPseudonym(ev.UserPseudonym) {
		return
	}
	k := subjectKey{tenant: t.number}
	copy(k.pseudonym[:], ev.UserPseudonym)
	day := int32(ev.ReceivedAt / int64(time.Second) / secondsPerDay)
	if s.told(k, day) {
		return
	}
	s.remember(k, day)
	b.batch.Subjects = append(b.batch.Subjects, SubjectRow{
		Tenant: t.id, Pseudonym: strings.Clone(ev.UserPseudonym), Day: day,
		Identity: b.arena.Close(append(b.arena.Open(len(sealed)), sealed...)),
	})
}

func isPseudonym(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == len(subjectKey{}.pseudonym)
}

// told reports whether a row of that day or a later one has gone to the store.
func (s *subjects) told(k subjectKey, day int32) bool {
	last, ok := s.young[k]
	if !ok {
		if last, ok = s.old[k]; ok {
			s.remember(k, last)
		}
	}
	return ok && last >= day
}

func (s *subjects) remember(k subjectKey, day int32) {
	if s.young == nil || len(s.young) >= maxSubjects {
		s.young, s.old = make(map[subjectKey]int32), s.young
	}
	s.young[k] = day
}
