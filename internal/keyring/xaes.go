package keyring

import (
	"crypto/aes"
	"crypto/cipher"
)

const (
	xaesNonceBytes  = 24
	xaesPrefixBytes = 12 // of the nonce: they choose the message key
	tagBytes        = 16
)

// xaes is XAES-256-GCM of c2sp.org/XAES-256-GCM: AES-256-GCM under a key
// derived from the first half of a nonce of 24 bytes, which is long enough to
// be drawn at random without counting messages (docs/decisions/0006).
type xaes struct {
	block cipher.Block
	k1    [aes.BlockSize]byte // the CMAC subkey
}

func newXAES(key [KeyBytes]byte) (*xaes, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	x := &xaes{block: block}
	block.Encrypt(x.k1[:], x.k1[:])
	var msb byte
	for i := len(x.k1) - 1; i >= 0; i-- {
		msb, x.k1[i] = x.k1[i]>>7, x.k1[i]<<1|msb
	}
	x.k1[len(x.k1)-1] ^= msb * 0b10000111 // no branch on the key
	return x, nil
}

// message gives the AES-256-GCM of all nonces that begin with prefix.
func (x *xaes) message(prefix []byte) (cipher.AEAD, error) {
	var key [KeyBytes]byte
	for i := range 2 {
		half := key[i*aes.BlockSize : (i+1)*aes.BlockSize]
		copy(half, []byte{0, byte(i + 1), 'X', 0})
		copy(half[4:], prefix[:xaesPrefixBytes])
		for j := range half {
			half[j] ^= x.k1[j]
		}
		x.block.Encrypt(half, half)
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
