// Package bpe counts text in tokens of OpenAI's published byte-pair encodings
// o200k_base and cl100k_base, as OpenAI's own tokenizer, tiktoken, does.
//
// The vocabularies are OpenAI's files, embedded by a module and checked here by
// the SHA-256 sums that tiktoken publishes for them. How text is split into pieces
// and how a piece is merged is written here, for two reasons: the Go libraries'
// patterns are run by backtracking engines, which on white space take time in
// the square of its length (and one gives other pieces than tiktoken does), and
// this reads what strangers send.
//
// Promises:
//   - Time is in O(n log n) of the text's bytes, whatever they are.
//   - A vocabulary is read when the first text is counted by it (some 50 ms and
//     15 MiB), and stays; a program that counts nothing holds none.
//   - Nothing of a text is kept.
//
// Special tokens are not known: "<|endoftext|>" in a text is text, as it is for
// the provider. What a provider adds around messages is the caller's affair.
package bpe

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/pkoukk/tiktoken-go-loader/assets"
)

// Encoding is a published encoding. Its methods may be called by many goroutines.
type Encoding struct {
	name   string
	sha256 string // of the vocabulary's file, from tiktoken's openai_public.py
	split  func(text string) (size int)
	ranks  func() (map[string]uint32, error)
}

// The encodings.
var (
	O200kBase  = newEncoding("o200k_base", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d", pieceO200k)
	Cl100kBase = newEncoding("cl100k_base", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7", pieceCl100k)
)

// ErrVocabulary is a vocabulary that is not the published one: a damaged build.
var ErrVocabulary = errors.New("bpe: not the published vocabulary")

func newEncoding(name, sum string, split func(string) int) *Encoding {
	e := &Encoding{name: name, sha256: sum, split: split}
	e.ranks = sync.OnceValues(e.load)
	return e
}

// String is the encoding's published name.
func (e *Encoding) String() string { return e.name }

// load reads the vocabulary: lines of a token in base64 and its rank.
func (e *Encoding) load() (map[string]uint32, error) {
	file, err := assets.Assets.ReadFile(e.name + ".tiktoken")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVocabulary, err)
	}
	if sum := sha256.Sum256(file); hex.EncodeToString(sum[:]) != e.sha256 {
		return nil, fmt.Errorf("%w: %s", ErrVocabulary, e.name)
	}
	ranks := make(map[string]uint32, bytes.Count(file, []byte{'\n'}))
	for line := range bytes.Lines(file) {
		text, number, _ := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		token, err := base64.StdEncoding.DecodeString(string(text))
		rank, bad := strconv.ParseUint(string(number), 10, 32)
		if err = errors.Join(err, bad); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrVocabulary, e.name, err)
		}
		ranks[string(token)] = uint32(rank)
	}
	return ranks, nil
}

// Count is how many tokens the text is. The error is ErrVocabulary, always or
// never in one build.
func (e *Encoding) Count(text string) (int, error) {
	n := 0
	err := e.each(text, func(uint32) { n++ })
	return n, err
}

// Encode is the text's tokens by their numbers.
func (e *Encoding) Encode(text string) (tokens []uint32, err error) {
	err = e.each(text, func(rank uint32) { tokens = append(tokens, rank) })
	return tokens, err
}

func (e *Encoding) each(text string, yield func(rank uint32)) error {
	ranks, err := e.ranks()
	if err != nil {
		return err
	}
	m := merger{ranks: ranks}
	for len(text) > 0 {
		n := e.split(text)
		m.piece(text[:n], yield)
		text = text[n:]
	}
	return nil
}
