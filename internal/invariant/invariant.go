// Package invariant stops the process's present work when something that
// cannot happen has happened.
//
// It promises that a violated invariant is named, carries its evidence, and
// can be told from every other panic with errors.As on the recovered value.
// It never logs, never exits and never checks input: what a user, a peer or a
// disk can cause is an error value, not an invariant.
package invariant

import "fmt"

// Violation is the value that Check panics with. Whoever recovers it must halt
// the part that raised it (a partition, a request): its state can no longer be
// trusted, and trying again would act on that state.
type Violation struct {
	// Name says which invariant, in words that docs/architecture.md or the
	// package comment uses, such as "sequence has no gap".
	Name string
	// Detail is the evidence: numbers and ids, never bodies or secrets.
	Detail string
}

// Error names the invariant and its evidence.
func (v *Violation) Error() string {
	if v.Detail == "" {
		return "invariant violated: " + v.Name
	}
	return "invariant violated: " + v.Name + ": " + v.Detail
}

// Check panics with a *Violation when cond is false. The detail is formatted
// only then; args are evaluated always, so hot paths pass plain values.
func Check(cond bool, name, format string, args ...any) {
	if cond {
		return
	}
	panic(&Violation{Name: name, Detail: fmt.Sprintf(format, args...)})
}

// Recover turns a Violation that is unwinding the stack into *err and lets
// every other panic pass. It is for the top of an actor:
//
//	defer invariant.Recover(&err)
func Recover(err *error) {
	switch r := recover().(type) {
	case nil:
	case *Violation:
		*err = r
	default:
		panic(r)
	}
}
