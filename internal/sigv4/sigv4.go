// Package sigv4 has AWS credentials as tenants give them to us, and signs requests
// with them (Signature Version 4 in the Authorization header).
//
// A credential prints as stars, and no error says anything of one. What is derived of
// it for a signature is forgotten with the signature: the AWS SDK's signer would
// remember the day's signing key. The hash of the body is always signed; there is no
// unsigned payload.
package sigv4

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

var (
	// ErrCredential says that a text is no AWS credential.
	ErrCredential = errors.New("an AWS credential is ACCESS_KEY_ID:SECRET_ACCESS_KEY, and for a temporary one :SESSION_TOKEN behind that, or the JSON that the AWS CLI prints of one")
	// ErrPath says that a request's path cannot be signed: it is not escaped as a path
	// is, or has a part that is "." or "..", which a server would take out.
	ErrPath = errors.New("sigv4: a part of the path is wrongly escaped, or a dot or two")
)

// Credential is an AWS access key: a user's, or a temporary one of a role. It prints
// as stars.
type Credential struct {
	AccessKeyID, SecretAccessKey string
	SessionToken                 string // "" is a user's key
}

// String hides the credential.
func (Credential) String() string { return "***" }

// GoString hides the credential from %#v.
func (Credential) GoString() string { return "***" }

// LogValue hides the credential from slog.
func (Credential) LogValue() slog.Value { return slog.StringValue("***") }

// Text is the credential in full, in the one form that is stored:
// ACCESS_KEY_ID:SECRET_ACCESS_KEY[:SESSION_TOKEN]. None of the three has a colon.
func (c Credential) Text() string {
	text := c.AccessKeyID + ":" + c.SecretAccessKey
	if c.SessionToken != "" {
		text += ":" + c.SessionToken
	}
	return text
}

// The parts as AWS has them: AKIA begins a user's id, ASIA a temporary one (IAM user
// guide, "IAM identifiers", unique ID prefixes), of 16 to 128 word characters
// (IAM API reference, AccessKey). Secrets and tokens are base64. None holds a colon.
var (
	accessKeyID  = regexp.MustCompile(`^A[KS]IA[0-9A-Za-z_]{12,124}$`)
	secretKey    = regexp.MustCompile(`^[0-9A-Za-z/+=]{16,128}$`)
	sessionToken = regexp.MustCompile(`^[0-9A-Za-z/+=_.-]{16,}$`)
)

// Is reports that a text is meant to be an AWS credential and no other key: it begins
// as an access key id does, or is JSON that names one.
func Is(text string) bool {
	return strings.HasPrefix(text, "AKIA") || strings.HasPrefix(text, "ASIA") ||
		strings.HasPrefix(strings.TrimSpace(text), "{") && strings.Contains(text, `"AccessKeyId"`)
}

// Parse reads a credential: its Text, or what `aws configure export-credentials`, `aws
// iam create-access-key` and `aws sts assume-role` print. Error: ErrCredential.
func Parse(text string) (Credential, error) {
	var c Credential
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		var in struct {
			Credential
			AccessKey, Credentials *Credential
		}
		if json.Unmarshal([]byte(text), &in) != nil { // its error could hold a part of the text
			return Credential{}, ErrCredential
		}
		c = in.Credential
		for _, inner := range []*Credential{in.AccessKey, in.Credentials} {
			if inner != nil {
				c = *inner
			}
		}
	} else {
		parts := strings.Split(text, ":")
		if len(parts) != 2 && len(parts) != 3 {
			return Credential{}, ErrCredential
		}
		c.AccessKeyID, c.SecretAccessKey = parts[0], parts[1]
		if len(parts) == 3 {
			if c.SessionToken = parts[2]; c.SessionToken == "" {
				return Credential{}, ErrCredential
			}
		}
	}
	if !c.valid() {
		return Credential{}, ErrCredential
	}
	return c, nil
}

// valid reports that the parts are what AWS's are; a temporary key is worth nothing
// without its token, nor a token with a user's key.
func (c Credential) valid() bool {
	temporary := strings.HasPrefix(c.AccessKeyID, "ASIA")
	return accessKeyID.MatchString(c.AccessKeyID) && secretKey.MatchString(c.SecretAccessKey) &&
		temporary == (c.SessionToken != "") && (!temporary || sessionToken.MatchString(c.SessionToken))
}

// Scope is what a signature is good for.
type Scope struct{ Region, Service string }

// set are the headers that Sign sets.
var set = [...]string{"Authorization", "X-Amz-Content-Sha256", "X-Amz-Date", "X-Amz-Security-Token"}

// Sign signs a request and its whole body as of now. It puts the path and the query
// into the one form that AWS's own clients send, so that a server which reads them
// and escapes them again comes to the same signature: in the path every byte but
// letters, digits and -._~ is escaped, as in /model/x-v1%3A0/converse. Signed are host,
// length, type and hash of the body, the time, and headers that begin with one of
// `also`, in their canonical form; not what proxies and clients add on the way. What
// the request had of a signature is replaced. Error: ErrPath.
func (c Credential) Sign(req *http.Request, body []byte, at Scope, now time.Time, also ...string) error {
	if err := escapePath(req.URL); err != nil {
		return err
	}
	for _, name := range set {
		delete(req.Header, name)
	}
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	bare := &http.Request{Method: req.Method, URL: req.URL, Host: req.Host, Header: signed(req.Header, also), ContentLength: int64(len(body))}
	bare.Header["X-Amz-Content-Sha256"] = []string{hash}
	keys := aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
	if err := v4.NewSigner().SignHTTP(context.Background(), keys, bare, hash, at.Service, at.Region, now); err != nil {
		return errors.New("sigv4: the request cannot be signed") // nothing of it may be told
	}
	for _, name := range set {
		if v := bare.Header[name]; v != nil {
			req.Header[name] = v
		}
	}
	req.Host = bare.Host // without a port that is the scheme's own
	return nil
}

// signed are the headers of a request that are signed.
func signed(from http.Header, also []string) http.Header {
	to := make(http.Header, 8)
	for name, values := range from {
		in := name == "Content-Type"
		for _, start := range also {
			in = in || strings.HasPrefix(name, start)
		}
		if in {
			to[name] = values
		}
	}
	return to
}

// escapePath escapes a path as AWS's clients do.
func escapePath(u *url.URL) error {
	parts := strings.Split(u.EscapedPath(), "/")
	plain := make([]string, len(parts))
	for i, part := range parts {
		text, err := url.PathUnescape(part)
		if err != nil || text == "." || text == ".." {
			return ErrPath
		}
		plain[i], parts[i] = text, escape(text)
	}
	u.Path, u.RawPath = strings.Join(plain, "/"), strings.Join(parts, "/")
	return nil
}

// escape is URI encoding (RFC 3986, 2.3: all but unreserved bytes).
func escape(s string) string {
	const digits = "0123456789ABCDEF"
	b := make([]byte, 0, len(s)+16)
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b = append(b, c)
		} else {
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return string(b)
}
