package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/ledger/chain"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/verify"
)

// roleOfReaders is who verifies.
const roleOfReaders = postgres.RoleApp

// restoreOlder puts a backup in the place of the database (T21), and in every
// other attempt of the directory on the same disk too.
func restoreOlder(v *victim, p *place) expected {
	both := p.n%2 == 1
	old := v.earlier
	if both {
		os.RemoveAll(v.dir)
		copyFolder(v.t, v.dir, old.dir)
	}
	v.restore(old.adminDSN)
	first := v.head(tamperTenants[0]) + 1
	if both {
		return expected{"kept checkpoint", tamperTenants[0], first, false}
	}
	return expected{string(verify.ByRoot), tamperTenants[0], first, false}
}

// restore puts a copy of another database in the place of the victim's.
func (v *victim) restore(dsn string) {
	v.t.Helper()
	v.drop0()
	copied, drop := testenv.PostgresCopy(v.t, dsn)
	v.adminDSN = copied
	admin, err := sql.Open("pgx", copied)
	if err != nil {
		v.t.Fatal(err)
	}
	v.admin, v.drop0 = admin, func() {
		admin.Close()
		drop()
	}
}

// notes are the sizes under which the directory has checkpoints of the tenant.
func (v *victim) notes(id string) (sizes []int64) {
	v.t.Helper()
	paths, err := filepath.Glob(filepath.Join(v.dir, checkpoint.LedgerLog, id, strings.Repeat("[0-9]", 20)))
	if err != nil || len(paths) == 0 {
		v.t.Fatalf("no checkpoints of %s: %v", id, err)
	}
	slices.Sort(paths)
	for _, path := range paths {
		sizes = append(sizes, sizeOfNote(path))
	}
	return sizes
}

func (v *victim) notePath(id string, size int64) string {
	return filepath.Join(v.dir, checkpoint.LedgerLog, id, fmt.Sprintf("%020d", size))
}

// overwrite replaces a file that is written once.
func (v *victim) overwrite(path string, content []byte) {
	v.t.Helper()
	if err := os.Remove(path); err != nil {
		v.t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o444); err != nil {
		v.t.Fatal(err)
	}
}

// resign signs every checkpoint of the tenant anew over what is stored now, with
// the tenant's own key, and puts it into both stores: a fork.
func (v *victim) resign(id string) {
	t := v.t
	t.Helper()
	key, err := v.ring.SigningKey(tenant.ID(id), v.ring.Epoch(tenant.ID(id), keyring.Checkpoint))
	if err != nil {
		t.Fatal(err)
	}
	signer := noteSigner{v.vkeyVerifier(id), key}
	list := v.forger(id).read(1, 0)
	leaves := make([]chain.Hash, len(list))
	hasher := chain.NewHasher()
	for i := range list {
		leaves[i] = hasher.Leaf(list[i].canonical)
	}
	for _, size := range v.notes(id) {
		root := merkleRoot(leaves[:size])
		text := fmt.Sprintf("%s\n%d\n%s\n", signer.Name(), size, base64.StdEncoding.EncodeToString(root[:]))
		signed, err := note.Sign(&note.Note{Text: text}, signer)
		if err != nil {
			t.Fatal(err)
		}
		v.overwrite(v.notePath(id, size), signed)
		v.exec(`update ledger.checkpoint set root = $4, chain = $5, note = $6 where tenant_id = $1 and log = $2 and size = $3`,
			id, checkpoint.LedgerLog, size, root[:], list[size-1].chain[:], string(signed))
	}
}

// noteSigner is a thief of a signing key.
type noteSigner struct {
	note.Verifier
	key ed25519.PrivateKey
}

func (s noteSigner) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

func (w *tamperWorld) vkeyVerifier(id string) note.Verifier {
	w.t.Helper()
	k, err := note.NewVerifier(w.vkey(id))
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

// merkleRoot is MTH of RFC 6962, 2.1, written down as it stands there.
func merkleRoot(leaves []chain.Hash) chain.Hash {
	if len(leaves) == 1 {
		return leaves[0]
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	left, right := merkleRoot(leaves[:k]), merkleRoot(leaves[k:])
	return sha256.Sum256(slices.Concat([]byte{1}, left[:], right[:]))
}

// editCheckpoint changes what was published (T25): the note on disk, the row's
// root, or the row's note.
func editCheckpoint(v *victim, p *place) expected {
	sizes := v.notes(p.tenant)
	size := sizes[p.rng.IntN(len(sizes))]
	switch p.n % 3 {
	case 0:
		path := v.notePath(p.tenant, size)
		signed, err := os.ReadFile(path)
		if err != nil {
			v.t.Fatal(err)
		}
		v.overwrite(path, flipRoot(p.rng, signed))
		return expected{string(verify.BySignature), p.tenant, size, false}
	case 1:
		v.exec(`update ledger.checkpoint set root = sha256(root) where tenant_id = $1 and log = $2 and size = $3`, p.tenant, checkpoint.LedgerLog, size)
	case 2:
		var signed string
		if err := v.admin.QueryRow(`select note from ledger.checkpoint where tenant_id = $1 and log = $2 and size = $3`,
			p.tenant, checkpoint.LedgerLog, size).Scan(&signed); err != nil {
			v.t.Fatal(err)
		}
		v.exec(`update ledger.checkpoint set note = $4 where tenant_id = $1 and log = $2 and size = $3`,
			p.tenant, checkpoint.LedgerLog, size, string(flipRoot(p.rng, []byte(signed))))
	}
	return expected{string(verify.BySignature), p.tenant, size, true}
}

// flipRoot changes a letter of a note's third line.
func flipRoot(rng *rand.Rand, signed []byte) []byte {
	lines := strings.SplitN(string(signed), "\n", 4)
	root := []byte(lines[2])
	at := rng.IntN(20)
	if root[at] == 'A' {
		root[at] = 'B'
	} else {
		root[at] = 'A'
	}
	lines[2] = string(root)
	return []byte(strings.Join(lines, "\n"))
}

// deleteCheckpoint takes one away (T26): from Postgres, from the directory, or
// the newest from both.
func deleteCheckpoint(v *victim, p *place) expected {
	sizes := v.notes(p.tenant)
	// In Postgres the newest may be missing, as after a crash, and comes back.
	size := sizes[p.rng.IntN(len(sizes)-1)]
	if p.n%3 == 2 {
		size = sizes[len(sizes)-1]
	}
	if p.n%3 != 1 {
		v.exec(`delete from ledger.checkpoint where tenant_id = $1 and log = $2 and size = $3`, p.tenant, checkpoint.LedgerLog, size)
	}
	if p.n%3 != 0 {
		if err := os.Remove(v.notePath(p.tenant, size)); err != nil {
			v.t.Fatal(err)
		}
	}
	if p.n%3 == 2 {
		return expected{"witness", p.tenant, size, true}
	}
	return expected{string(verify.BySignature), p.tenant, size, true}
}

// swapSealed gives sealed values to each other (T28): two persons' identities,
// which no chain covers; or two entries' tags, in entries rewritten with stolen
// keys behind the newest checkpoint, or under it.
func swapSealed(v *victim, p *place) expected {
	if p.n%3 == 0 {
		v.exec(`update ledger.subject s set identity = o.identity from ledger.subject o
			where s.tenant_id = $1 and o.tenant_id = $1 and s.identity is not null and o.identity is not null and s.pseudonym <> o.pseudonym
			  and s.pseudonym in (select pseudonym from ledger.subject where tenant_id = $1 order by pseudonym limit 2)
			  and o.pseudonym in (select pseudonym from ledger.subject where tenant_id = $1 order by pseudonym limit 2)`, p.tenant)
		return expected{bySealed, p.tenant, 0, true}
	}
	f := v.forger(p.tenant)
	f.stolen = true
	from := v.covered(p.tenant)
	if p.n%3 == 2 {
		from /= 2
	}
	var with []*chain.Entry
	for _, s := range f.read(from+1, 0) {
		if e := decode(v.t, s.canonical); e.Kind == chain.Usage && len(e.Event.SealedTags) > 0 {
			with = append(with, e)
		}
	}
	if len(with) < 2 {
		v.t.Fatal("too few entries have sealed tags")
	}
	i := p.rng.IntN(len(with) - 1)
	a, b := with[i], with[i+1]
	a.Event.SealedTags, b.Event.SealedTags = b.Event.SealedTags, a.Event.SealedTags
	for _, e := range []*chain.Entry{a, b} {
		f.put(e.Seq, e, e.Append(nil))
	}
	f.rechain(a.Seq, 0)
	return expected{bySealed, p.tenant, a.Seq, true}
}

// alterReports changes sums in ClickHouse (T31), which all copies share: what is
// altered is put back when the copy is dropped.
func alterReports(v *victim, p *place) expected {
	alter := func(statement string) {
		if err := v.chWriter.Exec(context.Background(), statement, p.tenant); err != nil {
			v.t.Fatal(err)
		}
	}
	pair := [][2]string{
		{`ALTER TABLE usage_hour UPDATE sum_cost = sum_cost + toDecimal128('0.000000000001', 12) WHERE tenant_id = ? SETTINGS mutations_sync = 2`,
			`ALTER TABLE usage_hour UPDATE sum_cost = sum_cost - toDecimal128('0.000000000001', 12) WHERE tenant_id = ? SETTINGS mutations_sync = 2`},
		{`ALTER TABLE usage_hour UPDATE sum_requests = sum_requests + 1 WHERE tenant_id = ? AND model = 'gpt-4o' SETTINGS mutations_sync = 2`,
			`ALTER TABLE usage_hour UPDATE sum_requests = sum_requests - 1 WHERE tenant_id = ? AND model = 'gpt-4o' SETTINGS mutations_sync = 2`},
		{`ALTER TABLE usage_hour UPDATE sum_cost = sum_cost * 2 WHERE tenant_id = ? SETTINGS mutations_sync = 2`,
			`ALTER TABLE usage_hour UPDATE sum_cost = sum_cost / 2 WHERE tenant_id = ? SETTINGS mutations_sync = 2`},
	}[p.n%3]
	alter(pair[0])
	drop := v.drop0
	v.drop0 = func() {
		alter(pair[1])
		drop()
	}
	return expected{byReports, p.tenant, 0, false}
}
