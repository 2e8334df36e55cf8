package ledger

import (
	"errors"
	"fmt"
)

// Errors of a Store.
var (
	// ErrFenced says that another writer owns the partition, or that a head
	// moved under us. The caller throws its state away and assigns anew.
	ErrFenced = errors.New("ledger: fenced by another writer")
	// ErrExists is ErrFenced for a row that the batch wanted to make and that is
	// there already. When it comes again and again nobody else is writing: then
	// the ledger, or this program, is not what it should be, and the partition halts.
	ErrExists = fmt.Errorf("%w: a row of the batch exists already", ErrFenced)
	// ErrTopicChanged says that the stored offsets belong to another topic or to
	// another number of partitions. Nobody resets that by itself.
	ErrTopicChanged = errors.New("ledger: stored offsets belong to another topic")
	// ErrPosition says that the stored offset does not follow from the stored
	// batches: somebody moved it. Reading on from there would pass over records or
	// make entries twice. The partition halts.
	ErrPosition = errors.New("ledger: the stored offset is not where the batches end")
	// ErrRefused says that the store refuses the batch for what is in it (a
	// constraint, a type): sending it again cannot help. The partition halts.
	ErrRefused = errors.New("ledger: the store refuses the batch")
	// ErrRuleVersion says that a control record asks for rules that this binary
	// does not have. A newer binary must go on here.
	ErrRuleVersion = errors.New("ledger: control record asks for rules this binary does not know")
)

// batchError says which records a failure is about.
type batchError struct {
	first, last int64 // offsets
	err         error
}

func (e *batchError) Error() string {
	if e.first == e.last {
		return fmt.Sprintf("offset %d: %v", e.first, e.err)
	}
	return fmt.Sprintf("offsets %d to %d: %v", e.first, e.last, e.err)
}

func (e *batchError) Unwrap() error { return e.err }
