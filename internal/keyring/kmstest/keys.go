package kmstest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"sync"
)

// Errors of Keys.
var (
	ErrNoKey  = errors.New("no such key")
	ErrSealed = errors.New("does not open")
)

// Keys is what is behind a key service: keys with versions, that encrypt with
// AES-256-GCM and check the additional data. The servers of the tests put a
// service's protocol in front of it.
type Keys struct {
	mu   sync.Mutex // protects keys
	keys map[string][]cipher.AEAD
}

// Rotate makes a key, or a new version of it.
func (k *Keys) Rotate(name string) {
	var secret [32]byte
	rand.Read(secret[:])
	block, err := aes.NewCipher(secret[:])
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		k.keys = map[string][]cipher.AEAD{}
	}
	k.keys[name] = append(k.keys[name], aead)
}

// Encrypt encrypts under the newest version of a key and says which that is,
// from 1. Errors: ErrNoKey.
func (k *Keys) Encrypt(name string, plain, aad []byte) (sealed []byte, version int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	versions := k.keys[name]
	if len(versions) == 0 {
		return nil, 0, ErrNoKey
	}
	aead := versions[len(versions)-1]
	sealed = binary.BigEndian.AppendUint32(nil, uint32(len(versions)))
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	return aead.Seal(append(sealed, nonce...), nonce, plain, aad), len(versions), nil
}

// Decrypt decrypts what Encrypt gave under any version of the same key.
// Errors: ErrNoKey, ErrSealed.
func (k *Keys) Decrypt(name string, sealed, aad []byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	versions := k.keys[name]
	if len(versions) == 0 {
		return nil, ErrNoKey
	}
	if len(sealed) < 4+12 {
		return nil, ErrSealed
	}
	version := int(binary.BigEndian.Uint32(sealed))
	if version == 0 || version > len(versions) {
		return nil, ErrSealed
	}
	plain, err := versions[version-1].Open(nil, sealed[4:16], sealed[16:], aad)
	if err != nil {
		return nil, ErrSealed
	}
	return plain, nil
}
