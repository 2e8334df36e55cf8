// Package connections keeps a tenant's connections to what the customer owns: so
// far where Amazon Bedrock's invocation logs lie, how they are reached, and how
// far they were read.
//
// It promises that no credential is stored: a connection in AWS names a role and
// an external id, which AWS gives fifteen-minute credentials for, and which are
// no secrets; the external id is ours and random, so that nobody can have us
// assume a role that another customer opened for us (the confused deputy). That
// each change of a configuration is in the audit log in the same transaction.
// And that the place up to which a connection was read moves only in the
// transaction that counts what was read (Done), by whoever holds its lease:
// another process that still believes to have it gets ErrLost.
package connections

import (
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/tenant"
)

// MaxPerTenant bounds the connections of a tenant that are in force.
const MaxPerTenant = 100

// Source says what kind of place logs are read from.
type Source string

// The sources.
const (
	S3         Source = "s3"         // objects of a bucket, found by listing
	SQS        Source = "sqs"        // objects of a bucket, told of by its notifications
	CloudWatch Source = "cloudwatch" // a log group of CloudWatch Logs
	Directory  Source = "directory"  // files below a directory that the operator chose
)

var (
	// ErrInvalid says that a connection cannot be made as it is given; the text
	// says which part.
	ErrInvalid = errors.New("connections: not acceptable")
	// ErrNotFound says that the tenant has no such connection in force.
	ErrNotFound = errors.New("connections: no such connection")
	// ErrExists says that a connection of that name is in force.
	ErrExists = errors.New("connections: there is one of that name")
	// ErrLost says that the lease belongs to another process, or to nobody since
	// the connection was changed. The pass ends.
	ErrLost = errors.New("connections: the lease is lost")
)

// Place is where logs lie and how they are reached.
type Place struct {
	Source Source
	// Bucket and Prefix are of S3 and SQS. Prefix is a directory's path, relative
	// to the operator's.
	Bucket, Prefix string
	Queue          string // of SQS: its URL
	LogGroup       string // of CloudWatch
	Region         string // of all but directories
	// RoleARN is the role that is assumed; ExternalID is what its trust policy asks for.
	RoleARN, ExternalID string
}

// New is what a connection is made from. Its ExternalID is made by us.
type New struct {
	Tenant tenant.ID
	Name   string
	Place  Place
}

// Bedrock is a connection to invocation logs.
type Bedrock struct {
	ID        string // "con_…"
	Tenant    tenant.ID
	Name      string
	Place     Place
	CreatedAt time.Time
	CreatedBy string
	Paused    bool
	State     State
}

// State is how far a connection is.
type State struct {
	PolledAt    time.Time // end of the last pass; zero before the first
	SucceededAt time.Time // end of the last pass without an error
	Failures    int       // passes in a row that ended with an error
	Failure     string    // the last one's
	Counts
}

// Counts are totals of what was read, over what was read twice too.
type Counts struct {
	Objects, Records, Accepted, Refused, Malformed, Damaged int64
	// Metered are records of calls that the metering proxy has entries of.
	Metered int64
}

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	regionName = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]+$`)
	roleName   = regexp.MustCompile(`^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_/-]{1,512}$`)
	queueURL   = regexp.MustCompile(`^https://sqs\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/[0-9]{12}/[A-Za-z0-9_-]{1,80}(\.fifo)?$`)
	groupName  = regexp.MustCompile(`^[A-Za-z0-9._/#-]{1,512}$`)
	keyPrefix  = regexp.MustCompile(`^[A-Za-z0-9!_.*'()/=:@+,-]*$`)
)

// Validate says what is wrong with a place, by the names of the API's fields.
func (p *Place) Validate() error {
	fields := []struct {
		name, value string
		form        *regexp.Regexp
		needed      bool
	}{
		{"bucket", p.Bucket, bucketName, p.Source == S3 || p.Source == SQS},
		{"queue_url", p.Queue, queueURL, p.Source == SQS},
		{"log_group", p.LogGroup, groupName, p.Source == CloudWatch},
		{"region", p.Region, regionName, p.Source != Directory},
		{"role_arn", p.RoleARN, roleName, p.Source != Directory},
	}
	switch p.Source {
	case S3, SQS, CloudWatch, Directory:
	default:
		return fmt.Errorf("%w: source is one of s3, sqs, cloudwatch, directory", ErrInvalid)
	}
	for _, f := range fields {
		switch {
		case f.needed && f.value == "":
			return fmt.Errorf("%w: %s is needed for the source %s", ErrInvalid, f.name, p.Source)
		case !f.needed && f.value != "":
			return fmt.Errorf("%w: %s means nothing for the source %s", ErrInvalid, f.name, p.Source)
		case f.needed && !f.form.MatchString(f.value):
			return fmt.Errorf("%w: %s has not the form that AWS gives it", ErrInvalid, f.name)
		}
	}
	if len(p.Prefix) > 1024 || !keyPrefix.MatchString(p.Prefix) {
		return fmt.Errorf("%w: prefix", ErrInvalid)
	}
	if p.Source == CloudWatch && p.Prefix != "" {
		return fmt.Errorf("%w: prefix means nothing for the source cloudwatch", ErrInvalid)
	}
	if p.Source == Directory && (p.Prefix == "" || path.IsAbs(p.Prefix) || path.Clean(p.Prefix) != p.Prefix || strings.HasPrefix(p.Prefix, "..")) {
		return fmt.Errorf("%w: prefix is a path below the operator's directory", ErrInvalid)
	}
	return nil
}

// newExternalID is what a role's trust policy has to ask for.
func newExternalID() string { return "tallystick-" + rand.Text() }
