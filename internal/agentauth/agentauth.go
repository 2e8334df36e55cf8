// Package agentauth is who a GPU agent is: the secret it has, what it proves
// with it, and the register of agents in Postgres.
//
// An agent's secret is stored nowhere. It is derived from a pepper, the tenant
// and the agent's id (HKDF-SHA256), so a proof is checked without looking
// anything up, and an id that does not exist costs the same work and gives the
// same answer as one that does. Only who knows a secret that was once given out
// makes the register be asked. An id is never used twice: what is revoked stays
// revoked, under every pepper.
//
// Peppers are replaced like this: the new one is put before the old one; agents'
// secrets are issued anew; and 24 hours after the new one was first seen the old
// one is worth nothing, whatever the configuration says. When that was stands in
// Postgres, so that a restart does not begin the day again.
//
// The package never logs a secret or a pepper, and puts neither into an error.
package agentauth

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/tallystick/tallystick/internal/tenant"
)

// SecretBytes is the length of an agent's secret.
const SecretBytes = 32

// CredentialPrefix begins an agent's credential, so that secret scanners can
// recognise one.
const CredentialPrefix = "tsa_"

// MaxAgentIDBytes bounds an agent's id.
const MaxAgentIDBytes = 64

var (
	// ErrCredential says that a text is no agent's credential.
	ErrCredential = errors.New("agentauth: not the credential of an agent")
	// ErrRefused says that an agent is not admitted; it never says why. The answer
	// is UNAUTHENTICATED.
	ErrRefused = errors.New("agentauth: the agent is not admitted")
	// ErrUnavailable says that nobody can tell now. The agent comes again.
	ErrUnavailable = errors.New("agentauth: agents cannot be verified now")
	// ErrNoAgent says that a tenant has no agent of that id that is in force.
	ErrNoAgent = errors.New("agentauth: no such agent")
	// ErrAgent says that an agent cannot be registered as asked for.
	ErrAgent = errors.New("agentauth: bad agent")
	// ErrPepper says that the pepper cannot be used, or is missing although agents
	// have secrets made of it. An operator must bring it back, or give another one
	// on purpose and issue every agent's secret anew.
	ErrPepper = errors.New("agentauth: the pepper cannot be used")
)

// Key names an agent. The zero value names none.
type Key struct {
	Tenant tenant.ID
	Agent  string
}

// Valid reports whether the key has the form that Register.Create gives keys.
func (k Key) Valid() bool {
	if !tenant.ValidID(string(k.Tenant)) || k.Agent == "" || len(k.Agent) > MaxAgentIDBytes {
		return false
	}
	for i := range len(k.Agent) {
		c := k.Agent[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// Secret is what an agent proves itself with. Printing it shows stars.
type Secret [SecretBytes]byte

// String hides the secret.
func (Secret) String() string { return "***" }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return "***" }

// Derive makes the secret of an agent. pepper is the whole of its entropy.
func Derive(pepper []byte, k Key) Secret {
	info := appendPart([]byte("tallystick/agent-secret/v1"), string(k.Tenant))
	info = appendPart(info, k.Agent)
	b, err := hkdf.Key(sha256.New, pepper, nil, string(info), SecretBytes)
	if err != nil { // only for lengths that HKDF cannot make
		panic("agentauth: " + err.Error())
	}
	return Secret(b)
}

// Credential is what an agent is given: who it is, and its secret.
type Credential struct {
	Key
	Secret Secret
}

// Text is the credential as it is shown, once:
// tsa_<tenant>.<agent>.<secret as unpadded base64url>.
func (c Credential) Text() string {
	return CredentialPrefix + string(c.Tenant) + "." + c.Agent + "." + base64.RawURLEncoding.EncodeToString(c.Secret[:])
}

// ParseCredential reads the text of a credential; space around it is dropped.
// Errors match ErrCredential and hold nothing of the text.
func ParseCredential(text string) (Credential, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), CredentialPrefix)
	parts := strings.Split(rest, ".")
	if !ok || len(parts) != 3 {
		return Credential{}, fmt.Errorf("%w: it is %sTENANT.AGENT.SECRET", ErrCredential, CredentialPrefix)
	}
	c := Credential{Key: Key{tenant.ID(parts[0]), parts[1]}}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(secret) != SecretBytes || !c.Valid() {
		return Credential{}, fmt.Errorf("%w: a part of it is damaged", ErrCredential)
	}
	c.Secret = Secret(secret)
	return c, nil
}

// appendPart appends a part with its length before it, so that no two lists of
// parts have the same bytes.
func appendPart[T string | []byte](b []byte, part T) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
	return append(b, part...)
}
