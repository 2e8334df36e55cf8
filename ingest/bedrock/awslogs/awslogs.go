// Package awslogs has the sources of ingest/bedrock that are in AWS: objects of
// an S3 bucket, found by listing or by the notifications of an SQS queue, and a
// log group of CloudWatch Logs.
//
// It reads as the role that the customer has opened for us: STS gives credentials
// for fifteen minutes, which stay in memory and are asked for again when they
// end. The calls there are: AssumeRole; ListObjectsV2 and GetObject; GetLogEvents;
// and for a queue ReceiveMessage and DeleteMessage, which is how a consumer of one
// says that it has read. Nothing of the customer's data is ever written or
// deleted, and a test holds the calls that were made against this list.
//
// What a log record refers to is opened only below the connection's own bucket
// and prefix: who can write a record cannot have us read anything else.
package awslogs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/tallystick/tallystick/ingest/bedrock"
	"github.com/tallystick/tallystick/internal/connections"
)

// credentialLife is how long assumed credentials live: STS's least.
const credentialLife = 15 * time.Minute

// Options are of the installation.
type Options struct {
	Endpoint string // URL in place of AWS's own, for tests; "": AWS's
	CA       []byte // PEM roots in place of the system's; nil: the system's
}

// Open opens a connection's source as the role that it names. It asks nothing of
// AWS yet. Our own credentials come from where the SDK finds them: the
// environment, shared files, web identity, container and instance roles.
func Open(ctx context.Context, c *connections.Bedrock, o Options) (bedrock.Source, error) {
	p := &c.Place
	load := []func(*config.LoadOptions) error{config.WithRegion(p.Region)}
	if o.CA != nil {
		load = append(load, config.WithCustomCABundle(bytes.NewReader(o.CA)))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("awslogs: %w", err)
	}
	if o.Endpoint != "" {
		cfg.BaseEndpoint = &o.Endpoint
	}
	role := stscreds.NewAssumeRoleProvider(sts.NewFromConfig(cfg), p.RoleARN, func(a *stscreds.AssumeRoleOptions) {
		a.RoleSessionName, a.ExternalID, a.Duration = "tallystick", &p.ExternalID, credentialLife
	})
	cfg.Credentials = aws.NewCredentialsCache(role)
	objects := &bucket{
		api: s3.NewFromConfig(cfg, func(s *s3.Options) { s.UsePathStyle = o.Endpoint != "" }), name: p.Bucket, prefix: p.Prefix,
	}
	switch p.Source {
	case connections.S3:
		return objects, nil
	case connections.SQS:
		return &queue{bucket: objects, api: sqs.NewFromConfig(cfg, func(s *sqs.Options) {
			if o.Endpoint != "" {
				s.BaseEndpoint = &o.Endpoint
			}
		}), url: p.Queue}, nil
	case connections.CloudWatch:
		return &stream{api: cloudwatchlogs.NewFromConfig(cfg), group: p.LogGroup}, nil
	}
	return nil, fmt.Errorf("awslogs: %q is no source in AWS", p.Source)
}

// Error codes that say that the credentials do not suffice.
var deniedCodes = map[string]bool{
	"AccessDenied": true, "AccessDeniedException": true, "InvalidAccessKeyId": true, "SignatureDoesNotMatch": true,
	"UnrecognizedClientException": true, "InvalidClientTokenId": true, "NotAuthorized": true,
}

// translate tells what a person must mend, and what is gone, from what passes.
func translate(what string, err error) error {
	if err == nil {
		return nil
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		switch code := api.ErrorCode(); {
		case deniedCodes[code]:
			return fmt.Errorf("%w: %s: %s", bedrock.ErrDenied, what, code)
		case code == "NoSuchKey" || code == "NotFound":
			return fmt.Errorf("%w: %s", bedrock.ErrGone, what)
		default:
			// The message may repeat what was asked for; the code is enough.
			return fmt.Errorf("awslogs: %s: %s: %w", what, code, errOf(err))
		}
	}
	return fmt.Errorf("awslogs: %s: %w", what, err)
}

// statusError is an AWS error by its status alone.
type statusError int

func (s statusError) Error() string { return http.StatusText(int(s)) }

func errOf(err error) error {
	var resp interface{ HTTPStatusCode() int }
	if errors.As(err, &resp) {
		return statusError(resp.HTTPStatusCode())
	}
	return errors.New("refused")
}
