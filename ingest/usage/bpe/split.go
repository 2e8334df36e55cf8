package bpe

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// class is what a character is to the patterns.
type class uint8

const (
	upper   class = 1 << iota // Lu, Lt
	lower                     // Ll
	other                     // Lm, Lo: letters without case
	mark                      // M
	number                    // N
	space                     // White_Space, newlines among it
	newline                   // carriage return and line feed
)

const (
	letter = upper | lower | other
	// In o200k's pattern letters without case and marks may stand among capitals
	// and among small letters.
	either   = other | mark
	capitals = upper | either
	smalls   = lower | either
)

// ascii are the classes of the characters below 128.
var ascii = func() (t [utf8.RuneSelf]class) {
	for c := range t {
		t[c] = classify(rune(c))
	}
	return t
}()

func classify(r rune) class {
	switch {
	case r == '\n' || r == '\r':
		return space | newline
	case unicode.IsSpace(r):
		return space
	case unicode.In(r, unicode.Ll):
		return lower
	case unicode.In(r, unicode.Lu, unicode.Lt):
		return upper
	case unicode.In(r, unicode.Lm, unicode.Lo):
		return other
	case unicode.In(r, unicode.M):
		return mark
	case unicode.In(r, unicode.N):
		return number
	}
	return 0
}

// at is the class and the size of the character at i; at the end both are 0. A
// byte that is no UTF-8 is a character without a class.
func at(s string, i int) (class, int) {
	if i >= len(s) {
		return 0, 0
	}
	if c := s[i]; c < utf8.RuneSelf {
		return ascii[c], 1
	}
	r, n := utf8.DecodeRuneInString(s[i:])
	return classify(r), n
}

// run is where a run of characters of the classes ends that begins at i.
func run(s string, i int, of class) int {
	for {
		c, n := at(s, i)
		if c&of == 0 {
			return i
		}
		i += n
	}
}

// pieceO200k is the size of the first piece of a text that is not empty, by
// o200k_base's pattern, whose alternatives are tried in this order:
//
//	[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?
//	[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?
//	\p{N}{1,3}
//	 ?[^\s\p{L}\p{N}]+[\r\n/]*
//	\s*[\r\n]+
//	\s+(?!\S)
//	\s+
func pieceO200k(s string) int {
	c, n := at(s, 0)
	if c&(letter|newline|number) == 0 { // it may stand before a word
		if end := word(s, n); end > 0 {
			return contracted(s, end)
		}
		if end := word(s, 0); end > 0 && c&mark != 0 {
			return contracted(s, end)
		}
		if end := run(s, n, capitals); end > n {
			return contracted(s, end)
		}
	}
	if c&letter != 0 {
		end := word(s, 0)
		if end == 0 {
			end = run(s, 0, capitals)
		}
		return contracted(s, end)
	}
	return rest(s, c, "\r\n/", false)
}

// word is where a word ends that begins at i and ends in small letters; 0 is none.
// Capitals that no small letter follows give back what can stand for one.
func word(s string, i int) int {
	end, last := i, 0 // last: behind the last character that is either
	for {
		c, n := at(s, end)
		if c&capitals == 0 {
			break
		}
		if end += n; c&either != 0 {
			last = end
		}
	}
	if c, _ := at(s, end); c&lower != 0 {
		return run(s, end, smalls)
	}
	return last
}

// contracted is end, behind an English contraction if one stands there.
func contracted(s string, end int) int { return end + contraction(s[end:]) }

// contraction is the size of 's 't 're 've 'm 'll or 'd in either case; 0 is none.
// The long s folds to an s, as in the patterns.
func contraction(s string) int {
	if len(s) < 2 || s[0] != '\'' {
		return 0
	}
	switch s[1] | 0x20 {
	case 's', 't', 'm', 'd':
		return 2
	}
	if strings.HasPrefix(s[1:], "ſ") {
		return 1 + len("ſ")
	}
	if len(s) < 3 {
		return 0
	}
	switch [2]byte{s[1] | 0x20, s[2] | 0x20} {
	case [2]byte{'r', 'e'}, [2]byte{'v', 'e'}, [2]byte{'l', 'l'}:
		return 3
	}
	return 0
}

// pieceCl100k is the same for cl100k_base:
//
//	'(?i:[sdmt]|ll|ve|re)
//	[^\r\n\p{L}\p{N}]?+\p{L}++
//	\p{N}{1,3}+
//	 ?[^\s\p{L}\p{N}]++[\r\n]*+
//	\s++$
//	\s*[\r\n]
//	\s+(?!\S)
//	\s
func pieceCl100k(s string) int {
	if n := contraction(s); n > 0 {
		return n
	}
	c, n := at(s, 0)
	if c&(letter|newline|number) == 0 {
		if end := run(s, n, letter); end > n {
			return end
		}
	}
	if c&letter != 0 {
		return run(s, 0, letter)
	}
	return rest(s, c, "\r\n", true)
}

// rest is the size of a piece that is no word: numbers, signs, white space.
// after may follow signs; whole says that white space at the end of the text is
// one piece.
func rest(s string, c class, after string, whole bool) int {
	if c&number != 0 {
		return digits(s)
	}
	if end := signs(s, after); end > 0 {
		return end
	}
	return blank(s, whole)
}

// digits is the size of up to three numbers.
func digits(s string) (end int) {
	for range 3 {
		c, n := at(s, end)
		if c&number == 0 {
			break
		}
		end += n
	}
	return end
}

// signs is the size of a run of signs, a blank before it and what may follow it.
func signs(s, after string) int {
	i := 0
	if s[0] == ' ' {
		i = 1
	}
	end := i
	for {
		c, n := at(s, end)
		if n == 0 || c&(space|letter|number) != 0 {
			break
		}
		end += n
	}
	if end == i {
		return 0
	}
	for end < len(s) && strings.IndexByte(after, s[end]) >= 0 {
		end++
	}
	return end
}

// blank is the size of a piece of white space: to the last newline of the run, else
// all but the last character, which may belong to what follows.
func blank(s string, whole bool) int {
	end, last, line := 0, 0, 0 // last: where the last character begins
	for {
		c, n := at(s, end)
		if c&space == 0 {
			break
		}
		last = end
		if end += n; c&newline != 0 {
			line = end
		}
	}
	switch {
	case whole && end == len(s):
		return end
	case line > 0:
		return line
	case end < len(s) && last > 0:
		return last
	}
	return end
}
