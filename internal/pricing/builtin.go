package pricing

import (
	_ "embed" // the book below
	"fmt"
	"sync"
)

//go:generate go run ./genbuiltin -list testdata/litellm_model_prices_2026-08-01.json.zst -out builtin.jsonl

//go:embed builtin.jsonl
var builtinBytes []byte

var builtin = sync.OnceValue(func() *Book {
	b, err := ParseBook(builtinBytes)
	if err != nil {
		panic(fmt.Sprintf("pricing: the built-in book does not parse: %v", err))
	}
	return b
})

// Builtin returns the small book of well-known models that travels with the program, the
// same one on every call. Its prices are those of the day in its header, valid from
// 2023-01-01 on: a trace of an earlier year is priced as if it ran that day, which the
// header says. Publish a book of your own where history matters.
func Builtin() *Book { return builtin() }
