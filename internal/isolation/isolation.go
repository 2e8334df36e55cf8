// Package isolation is the suite that tries to reach one tenant's data as
// another (docs/security.md). `make isolation` runs it; it has no code for the
// program.
//
// It is driven by the catalogues of migrated databases and by the descriptors of
// the API, so that a table, a role's privilege or a request that is new is
// covered without a word here. What it promises of itself: every attempt has a
// positive control, the same statement as the rightful tenant, so "no leak" never
// means "it failed to run"; and holes that are made on purpose are found.
//
// Its last line counts:
//
//	isolation: tables=… mutants=…/… attempts=… controls_ok=… leaks=0 pooled=… wrong=0 injections=… switched=0
package isolation
