// Package sigv4test is for tests: it checks signatures as AWS does, by code that shares
// nothing with what makes them. It is written from AWS's documentation ("Create a
// signed AWS API request", IAM user guide), and held against published signatures of
// AWS's test suite.
package sigv4test

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Key is what a signature must have been made with.
type Key struct{ ID, Secret, Token, Region, Service string }

// maxSkew is how far a request's time may be from ours; AWS allows five minutes.
const maxSkew = 5 * time.Minute

// Verify says what is wrong with a request that a server got, as AWS would: its
// signature, what it signs, its age, or the hash of its body. nil is nothing.
func Verify(r *http.Request, body []byte, k Key, now time.Time) error {
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || now.Sub(at).Abs() > maxSkew {
		return fmt.Errorf("X-Amz-Date %q is not about now", r.Header.Get("X-Amz-Date"))
	}
	sum := sha256.Sum256(body)
	if got := r.Header.Get("X-Amz-Content-Sha256"); got != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("X-Amz-Content-Sha256 %q is not the body's", got)
	}
	if got := r.Header.Get("X-Amz-Security-Token"); got != k.Token {
		return errors.New("the session token is another")
	}
	names, err := signedHeaders(r, k, at)
	if err != nil {
		return err
	}
	for name := range r.Header {
		lower := strings.ToLower(name)
		if (strings.HasPrefix(lower, "x-amz-") || lower == "content-type") && !slices.Contains(names, lower) {
			return fmt.Errorf("%s is not signed", name)
		}
	}
	if !slices.Contains(names, "host") {
		return errors.New("host is not signed")
	}
	_, _, signature := parse(r)
	want := Signature(r, hex.EncodeToString(sum[:]), names, k, at)
	if subtle.ConstantTimeCompare([]byte(want), []byte(signature)) != 1 {
		return errors.New("the signature is not the request's")
	}
	return nil
}

// parse reads the Authorization header.
func parse(r *http.Request) (credential, names, signature string) {
	fields, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return "", "", ""
	}
	for field := range strings.SplitSeq(fields, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		switch name {
		case "Credential":
			credential = value
		case "SignedHeaders":
			names = value
		case "Signature":
			signature = value
		}
	}
	return credential, names, signature
}

// signedHeaders are the names that the signature is over.
func signedHeaders(r *http.Request, k Key, at time.Time) ([]string, error) {
	credential, list, signature := parse(r)
	if credential != k.ID+"/"+scope(k, at) {
		return nil, fmt.Errorf("the credential %q is not %s/%s", credential, k.ID, scope(k, at))
	}
	names := strings.Split(list, ";")
	if signature == "" || !slices.IsSorted(names) {
		return nil, errors.New("no signature, or its headers are not in order")
	}
	return names, nil
}

func scope(k Key, at time.Time) string {
	return strings.Join([]string{at.Format("20060102"), k.Region, k.Service, "aws4_request"}, "/")
}

// Signature is the one that a request has with a body of that hash and those headers
// signed. The path counts as it came over the wire, escaped once more.
func Signature(r *http.Request, bodyHash string, names []string, k Key, at time.Time) string {
	path, query, _ := strings.Cut(r.RequestURI, "?")
	var headers strings.Builder
	for _, name := range names {
		value := strings.Join(r.Header.Values(name), ",")
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = fmt.Sprint(r.ContentLength)
		}
		headers.WriteString(name + ":" + strings.Join(strings.Fields(value), " ") + "\n")
	}
	canonical := strings.Join([]string{r.Method, encode(path, "/"), canonicalQuery(query), headers.String(), strings.Join(names, ";"), bodyHash}, "\n")
	hash := sha256.Sum256([]byte(canonical))
	toSign := strings.Join([]string{"AWS4-HMAC-SHA256", at.Format("20060102T150405Z"), scope(k, at), hex.EncodeToString(hash[:])}, "\n")
	key := []byte("AWS4" + k.Secret)
	for _, part := range []string{at.Format("20060102"), k.Region, k.Service, "aws4_request"} {
		key = mac(key, part)
	}
	return hex.EncodeToString(mac(key, toSign))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// encode is URI encoding: all but unreserved bytes and those of keep.
func encode(s, keep string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"+keep, rune(c)) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// canonicalQuery is a query's parameters, encoded and then sorted by name and value.
func canonicalQuery(query string) string {
	var list [][2]string
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		plainName, err := url.QueryUnescape(name)
		plainValue, errValue := url.QueryUnescape(value)
		if pair != "" && err == nil && errValue == nil {
			list = append(list, [2]string{encode(plainName, ""), encode(plainValue, "")})
		}
	}
	slices.SortFunc(list, func(a, b [2]string) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	var b strings.Builder
	for i, pair := range list {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(pair[0] + "=" + pair[1])
	}
	return b.String()
}
