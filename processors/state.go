package processors

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/tallystick/tallystick/ledger/chain"
)

// state is the processors of one partition after one commit.
type state struct {
	partition int32
	commit    int64
	kept      int64 // commit of the oldest snapshot that it was made from
	procs     []Processor
}

// Factory makes the processors of one partition, always the same ones.
type Factory func() []Processor

// apply hands an entry to every processor.
func (s *state) apply(e *chain.Entry) error {
	for _, p := range s.procs {
		if err := p.Apply(e); err != nil {
			return fmt.Errorf("%w: processor %s, tenant %s entry %d: %w", ErrRefused, p.Name(), e.Event.Tenant, e.Seq, err)
		}
	}
	return nil
}

// restore makes the state of a partition after a commit: the newest snapshot,
// then the ledger from there.
func (st *storer) restore(ctx context.Context, partition int32, commit int64) (*state, error) {
	s := &state{partition: partition, commit: commit, procs: st.r.factory()}
	behind := make([]int64, len(s.procs)) // commit that each processor stands at
	oldest := commit
	for i, p := range s.procs {
		snap, err := st.r.snapshots.Load(ctx, partition, p.Name())
		if err != nil {
			return nil, fmt.Errorf("load snapshot: %w", err)
		}
		if behind[i], err = restoreFrom(p, snap, commit); err != nil {
			// The ledger has everything that the snapshot had.
			st.log.Warn("snapshot is not usable; reading the ledger from its beginning", "partition", partition, "err", err)
			fresh := st.r.factory()
			s.procs[i], behind[i] = fresh[i], 0
		}
		oldest = min(oldest, behind[i])
	}
	s.kept = oldest
	if oldest == commit {
		return s, nil
	}
	if err := st.replay(ctx, s, behind, oldest); err != nil {
		return nil, err
	}
	return s, nil
}

// restoreFrom gives the processor the snapshot's state and says which commit it
// stands at then. A snapshot of another version, or of a commit that is yet to
// come, is as good as none.
func restoreFrom(p Processor, snap *Snapshot, commit int64) (int64, error) {
	if snap == nil || snap.Version != p.Version() || snap.Commit > commit {
		return 0, nil
	}
	body, err := unseal(snap.State)
	if err != nil {
		return 0, fmt.Errorf("processor %s: %w", p.Name(), err)
	}
	if err := p.Restore(body); err != nil {
		return 0, fmt.Errorf("processor %s: %w", p.Name(), err)
	}
	return snap.Commit, nil
}

// replay applies the commits after those that the processors stand at, and
// emits nothing: that was stored before.
func (st *storer) replay(ctx context.Context, s *state, behind []int64, oldest int64) error {
	rows := 0
	err := st.r.ledger.Frames(ctx, s.partition, oldest+1, s.commit, func(f *chain.Frame) error {
		if rows += len(f.Entries); rows > replayFlushRows {
			rows = 0
			if err := flushUnseen(s); err != nil {
				return err
			}
		}
		for i := range f.Entries {
			if err := st.entry.Decode(f.Entries[i].Canonical); err != nil {
				return fmt.Errorf("%w: partition %d commit %d tenant %s entry %d: %w",
					ErrCorrupt, s.partition, f.Batch, f.Tenant, f.FirstSeq+int64(i), err)
			}
			for k, p := range s.procs {
				if f.Batch <= behind[k] {
					continue
				}
				if err := p.Apply(&st.entry); err != nil {
					return fmt.Errorf("%w: processor %s, tenant %s entry %d: %w", ErrRefused, p.Name(), f.Tenant, st.entry.Seq, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("replay partition %d commits %d to %d: %w", s.partition, oldest+1, s.commit, err)
	}
	return flushUnseen(s)
}

// replayFlushRows bounds what the processors gather for a Flush in a replay.
const replayFlushRows = 50_000

// flushUnseen takes what was applied into the state and emits nothing.
func flushUnseen(s *state) error {
	for _, p := range s.procs {
		if err := p.Flush(discard); err != nil {
			return fmt.Errorf("%w: processor %s: %w", ErrRefused, p.Name(), err)
		}
	}
	return nil
}

// sealVersion is the first byte of a stored snapshot.
const sealVersion = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errSnapshot = errors.New("snapshot is damaged")

// seal appends a processor's snapshot to b behind a version and its CRC-32C.
func seal(b []byte, p Processor) []byte {
	from := len(b)
	b = p.Snapshot(append(b, sealVersion, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(b[from+1:], crc32.Checksum(b[from+5:], castagnoli))
	return b
}

func unseal(b []byte) ([]byte, error) {
	if len(b) < 5 || b[0] != sealVersion || binary.BigEndian.Uint32(b[1:]) != crc32.Checksum(b[5:], castagnoli) {
		return nil, errSnapshot
	}
	return b[5:], nil
}
