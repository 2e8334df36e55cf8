package verify

import (
	"maps"
	"slices"
)

// Published are a ledger's own checkpoints as they stand where they were
// published: nothing of them is believed before it was checked.
type Published struct {
	// Notes are checkpoints to be held against the entries.
	Notes []PublishedNote
	// Sizes are all that there are, in order, by the name of the place.
	Sizes map[string][]int64
	// Trusted are the keys that sign.
	Trusted VerifierKeys
}

// PublishedNote is one checkpoint in one place.
type PublishedNote struct {
	Place string
	Size  int64 // under which it stands there
	// Root is the root that stands beside it, if any does.
	Root *[HashSize]byte
	Note []byte
}

// open checks the notes. A note that is not what was signed breaks the ledger at
// the entry that it would cover.
func (p *Published) open(tenant string) (list []Checkpoint, err error) {
	if p == nil {
		return nil, nil
	}
	for _, n := range p.Notes {
		c, err := OpenCheckpoint(n.Note, p.Trusted, nil)
		if err != nil {
			return nil, breakAt(n.Size, Signature, "the checkpoint of size %d in the %s: %v", n.Size, n.Place, err)
		}
		of, ok := originTenant(c.Origin, ledgerLog)
		if !ok || of != tenant || c.Size != n.Size || n.Root != nil && *n.Root != c.Root {
			return nil, breakAt(n.Size, Signature, "under size %d in the %s stands a checkpoint of size %d of %.200q, or beside it another root", n.Size, n.Place, c.Size, c.Origin)
		}
		list = append(list, c)
	}
	return list, p.complete()
}

// complete wants each place to have every checkpoint that another has, up to its
// own greatest. Beyond that a place may be behind: publishing takes a moment.
func (p *Published) complete() error {
	places := slices.Sorted(maps.Keys(p.Sizes))
	for _, place := range places {
		have := p.Sizes[place]
		if len(have) == 0 {
			continue
		}
		for _, other := range places {
			for _, size := range p.Sizes[other] {
				if _, found := slices.BinarySearch(have, size); !found && size < have[len(have)-1] {
					return breakAt(size, MissingCheckpoint, "the checkpoint of size %d stands in the %s and is gone from the %s", size, other, place)
				}
			}
		}
	}
	return p.vanished(places)
}

// vanished says when a place has none while another has more than one: a first
// one may be on its way.
func (p *Published) vanished(places []string) error {
	for _, place := range places {
		for _, other := range places {
			if sizes := p.Sizes[other]; len(p.Sizes[place]) == 0 && len(sizes) > 1 {
				return breakAt(sizes[0], MissingCheckpoint, "%d checkpoints stand in the %s and none in the %s", len(sizes), other, place)
			}
		}
	}
	return nil
}
