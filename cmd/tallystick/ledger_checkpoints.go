package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/mod/sumdb/note"

	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/pgread"
	"github.com/tallystick/tallystick/ledger/verify"
)

// maxHeldNotes is how many checkpoints of a ledger are held against its entries:
// enough to date a change, few enough that their signatures cost nothing.
const maxHeldNotes = 256

// publishedNotes are the checkpoints of this installation as they stand in
// Postgres and in the append-only directory.
type publishedNotes struct {
	db   *postgres.DB // as postgres.RoleApp
	ring *keyring.Ring
	name string // of the installation
	dir  string // "" when this machine has none
}

// of reads a tenant's checkpoints.
func (p *publishedNotes) of(ctx context.Context, id tenant.ID) (*verify.Published, error) {
	keys, err := p.keys(id)
	if err != nil {
		return nil, err
	}
	stored := pgread.NewCheckpoints(p.db, id, checkpoint.LedgerLog)
	out := &verify.Published{Trusted: keys, Sizes: map[string][]int64{}}
	if out.Sizes["database"], err = stored.Sizes(ctx); err != nil {
		return nil, err
	}
	notes, err := stored.Between(ctx, 1, math.MaxInt64, maxHeldNotes)
	if err != nil {
		return nil, err
	}
	for _, n := range notes {
		root := n.Root
		out.Notes = append(out.Notes, verify.PublishedNote{Place: "database", Size: n.Size, Root: &root, Note: n.Text})
	}
	return out, p.directory(id, out)
}

// keys are the public halves of the keys that sign the tenant's checkpoints.
func (p *publishedNotes) keys(id tenant.ID) (verify.VerifierKeys, error) {
	origin := checkpoint.Origin(p.name, checkpoint.LedgerLog, id)
	var lines strings.Builder
	for epoch := uint32(1); epoch <= p.ring.Epoch(id, keyring.Checkpoint); epoch++ {
		key, err := p.ring.SigningKey(id, epoch)
		if err != nil {
			return nil, err
		}
		vkey, err := note.NewEd25519VerifierKey(origin, key.Public().(ed25519.PublicKey))
		if err != nil {
			return nil, err
		}
		lines.WriteString(vkey + "\n")
	}
	return verify.ParseKeys([]byte(lines.String()))
}

// directory adds the newest note of the directory, and what sizes there are.
func (p *publishedNotes) directory(id tenant.ID, out *verify.Published) error {
	if p.dir == "" {
		return nil
	}
	if _, err := os.Stat(p.dir); errors.Is(err, fs.ErrNotExist) {
		return nil // this machine does not sign
	}
	dir, err := checkpoint.OpenDir(p.dir)
	if err != nil {
		return err
	}
	sizes, err := dir.Sizes(checkpoint.LedgerLog, id)
	if err != nil {
		return err
	}
	out.Sizes["directory"] = sizes
	for i := len(sizes) - 1; i >= 0; i -= max(1, len(sizes)/maxHeldNotes) {
		text, err := dir.Read(checkpoint.LedgerLog, id, sizes[i])
		if err != nil {
			return fmt.Errorf("the checkpoint of size %d: %w", sizes[i], err)
		}
		out.Notes = append(out.Notes, verify.PublishedNote{Place: "directory", Size: sizes[i], Note: []byte(text)})
	}
	return nil
}

// keptFlags are checkpoints from outside the ledger: what shows that it was
// rolled back or rewritten with everything in it.
type keptFlags struct {
	files   []string
	dir     string
	keyFile string
}

func (k *keptFlags) bind(fs *pflag.FlagSet) {
	fs.StringArrayVar(&k.files, "checkpoint", nil, "hold the ledger against the signed checkpoint in `FILE`; may be given again")
	fs.StringVar(&k.dir, "checkpoint-dir", "", "hold it against the append-only directory `DIR` of checkpoints")
	fs.StringVar(&k.keyFile, "key", "", "public keys that sign checkpoints, one a line (default: those of --keys-dir)")
}

func (k *keptFlags) empty() bool { return len(k.files) == 0 && k.dir == "" }

// of reads those that are of the tenant. The keys are those of --key, else the
// ring's.
func (k *keptFlags) of(id tenant.ID, ring *keyring.Ring) ([]verify.Checkpoint, error) {
	if k.empty() {
		return nil, nil
	}
	keys, err := k.keys(id, ring)
	if err != nil {
		return nil, err
	}
	notes, err := k.notes(id)
	if err != nil {
		return nil, err
	}
	var list []verify.Checkpoint
	for _, n := range notes {
		c, err := verify.OpenCheckpoint(n.Note, keys, nil)
		if !strings.HasSuffix(c.Origin, "/"+checkpoint.LedgerLog+"/"+string(id)) && c.Origin != "" {
			continue // of another tenant or log
		}
		if err != nil {
			return nil, &exitError{exitUnknown, fmt.Errorf("%s: %w", n.Place, err)}
		}
		list = append(list, c)
	}
	return list, nil
}

func (k *keptFlags) keys(id tenant.ID, ring *keyring.Ring) (verify.VerifierKeys, error) {
	if k.keyFile == "" && ring == nil {
		return nil, usageError("--checkpoint and --checkpoint-dir need the keys that sign: --key or --keys-dir")
	}
	if k.keyFile == "" {
		cfg, err := config.Load(config.Sources{Environ: os.Environ()})
		if err != nil {
			return nil, err
		}
		return (&publishedNotes{ring: ring, name: cfg.Name}).keys(id)
	}
	b, err := os.ReadFile(k.keyFile)
	if err != nil {
		return nil, usageError("--key: %w", err)
	}
	keys, err := verify.ParseKeys(b)
	if err != nil {
		return nil, usageError("--key: %w", err)
	}
	return keys, nil
}

// notes reads the files, and the tenant's folder of the directory.
func (k *keptFlags) notes(id tenant.ID) ([]verify.PublishedNote, error) {
	var list []verify.PublishedNote
	for _, path := range k.files {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, usageError("--checkpoint: %w", err)
		}
		list = append(list, verify.PublishedNote{Place: path, Note: b})
	}
	if k.dir == "" {
		return list, nil
	}
	if _, err := os.Stat(k.dir); err != nil {
		return nil, usageError("--checkpoint-dir: %w", err)
	}
	out := &verify.Published{Sizes: map[string][]int64{}}
	err := (&publishedNotes{dir: k.dir}).directory(id, out)
	return append(list, out.Notes...), err
}
