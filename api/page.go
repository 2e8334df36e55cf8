package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
)

// Page sizes of lists.
const (
	defaultPageSize = 50
	maxPageSize     = 1000
)

// pageMACBytes is how much of the MAC a token carries.
const pageMACBytes = 16

// pager makes and opens page tokens: the cursor a list goes on from, with a MAC
// over it and over what was asked. A token is good for the same question of the
// same tenant only; what it holds is no promise to the client.
type pager struct{ key [32]byte }

func newPager(key [32]byte) pager { return pager{key} }

func (p pager) mac(question, cursor string) []byte {
	h := hmac.New(sha256.New, p.key[:])
	h.Write([]byte("tallystick/page/v1\x00"))
	h.Write([]byte(question))
	h.Write([]byte{0})
	h.Write([]byte(cursor))
	return h.Sum(nil)[:pageMACBytes]
}

// token is the page token that goes on after the cursor; "" ends a list.
func (p pager) token(question, cursor string) string {
	return base64.RawURLEncoding.EncodeToString(append(p.mac(question, cursor), cursor...))
}

// open gives the cursor of a token; "" for the first page.
func (p pager) open(question, token string) (string, error) {
	if token == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) <= pageMACBytes {
		return "", invalidToken()
	}
	cursor := string(b[pageMACBytes:])
	if !hmac.Equal(b[:pageMACBytes], p.mac(question, cursor)) {
		return "", invalidToken()
	}
	return cursor, nil
}

func invalidToken() error {
	return invalid("page_token", "invalid", "was not given by this server for this request; begin without one")
}

// pageSize applies AIP-158: 0 is the default, more than the most is the most.
func pageSize(n int32) (int, error) {
	switch {
	case n < 0:
		return 0, invalid("page_size", "range", "must not be negative")
	case n == 0:
		return defaultPageSize, nil
	}
	return min(int(n), maxPageSize), nil
}
