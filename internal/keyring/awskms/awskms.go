// Package awskms wraps root keys under a key of AWS KMS.
//
// The binding of a root key is its encryption context, which AWS authenticates,
// writes to CloudTrail, and accepts in key policies: a policy may limit a
// principal to one tenant. Credentials come from where the SDK finds them
// (environment, shared files, web identity, container and instance roles) and
// are renewed by it. Rotation of the key inside AWS needs nothing here: what an
// older backing key wrapped opens, and Rewrap moves it to the newest.
//
// A key is named by its ARN or id and never by an alias: an alias can be moved
// to another key, and a key file that somebody can write to must not choose
// which key opens it.
package awskms

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/tallystick/tallystick/internal/keyring"
)

// Options name a key of AWS KMS.
type Options struct {
	Key      string // ARN or id
	Region   string // "": the ARN's, or what the environment says
	Endpoint string // URL in place of AWS's own; "": AWS's
	CA       []byte // PEM roots in place of the system's; nil: the system's
}

// Key is a keyring.KMS. It may be used from many goroutines.
type Key struct {
	name string
	api  *kms.Client
}

// New makes a Key. It asks nothing of AWS yet.
func New(ctx context.Context, o Options) (*Key, error) {
	region, err := o.region()
	if err != nil {
		return nil, err
	}
	load := []func(*config.LoadOptions) error{config.WithRegion(region)}
	if o.CA != nil {
		load = append(load, config.WithCustomCABundle(bytes.NewReader(o.CA)))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("awskms: %w", err)
	}
	if cfg.Region == "" && o.Endpoint == "" {
		return nil, fmt.Errorf("awskms: the key %q does not say its region: give its ARN, or a region", o.Key)
	}
	return &Key{o.Key, kms.NewFromConfig(cfg, func(k *kms.Options) {
		if o.Endpoint != "" {
			k.BaseEndpoint = aws.String(o.Endpoint)
		}
	})}, nil
}

// region checks the key's name and answers the region that it or the options say.
func (o Options) region() (string, error) {
	if o.Key == "" || strings.HasPrefix(o.Key, "alias/") || strings.Contains(o.Key, ":alias/") {
		return "", fmt.Errorf("awskms: %q is not the ARN or the id of a key", o.Key)
	}
	// arn:aws:kms:eu-central-1:123456789012:key/…
	if parts := strings.Split(o.Key, ":"); o.Region == "" && len(parts) == 6 && parts[0] == "arn" {
		return parts[3], nil
	}
	return o.Region, nil
}

// ID implements keyring.KMS.
func (k *Key) ID() string { return "aws:" + k.name }

// Wrap implements keyring.KMS.
func (k *Key) Wrap(ctx context.Context, secret []byte, at keyring.Binding) ([]byte, error) {
	out, err := k.api.Encrypt(ctx, &kms.EncryptInput{KeyId: &k.name, Plaintext: secret, EncryptionContext: at.Map()})
	if err != nil {
		return nil, translate(err)
	}
	return out.CiphertextBlob, nil
}

// Unwrap implements keyring.KMS.
func (k *Key) Unwrap(ctx context.Context, wrapped []byte, at keyring.Binding) ([]byte, error) {
	out, err := k.api.Decrypt(ctx, &kms.DecryptInput{KeyId: &k.name, CiphertextBlob: wrapped, EncryptionContext: at.Map()})
	if err != nil {
		return nil, translate(err)
	}
	return out.Plaintext, nil
}

// translate tells what waiting cannot mend from all else.
func translate(err error) error {
	var invalid *types.InvalidCiphertextException
	var wrong *types.IncorrectKeyException
	if errors.As(err, &invalid) || errors.As(err, &wrong) {
		return fmt.Errorf("%w: awskms: %w", keyring.ErrMasterKey, err)
	}
	return fmt.Errorf("%w: awskms: %w", keyring.ErrUnavailable, err)
}
