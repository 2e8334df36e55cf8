package awslogs

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/tallystick/tallystick/ingest/bedrock"
)

const (
	// Lookback is how much later than its hour an object may arrive in the bucket
	// and still be found by listing. AWS delivers within minutes.
	Lookback = 24 * time.Hour
	// maxFolders bounds the folders above the dates: accounts times regions.
	maxFolders = 10_000
	// maxLevels bounds how deep dates lie below the prefix.
	maxLevels = 8
)

// Bedrock writes PREFIX/AWSLogs/ACCOUNT/BedrockModelInvocationLogs/REGION/YYYY/MM/DD/HH/TIME_ID.json.gz
// and large bodies below data/ beside them.
var (
	yearFolder = regexp.MustCompile(`/(20[0-9]{2})/$`)
	hourOfKey  = regexp.MustCompile(`^(.*/)(20[0-9]{2}/[0-9]{2}/[0-9]{2}/[0-9]{2})/[^/]+$`)
)

const hourForm = "2006/01/02/15"

// bucket lists and opens objects of one bucket.
type bucket struct {
	api          *s3.Client
	name, prefix string
}

// Objects implements bedrock.Source. Objects below dates are listed from the
// series' cursor on; it stays Lookback behind the newest one that was read, and
// what lies between was remembered.
func (b *bucket) Objects(ctx context.Context, at bedrock.Cursors, fn func(bedrock.Object) error) error {
	folders := []string{b.prefix}
	for level, seen := 0, 0; len(folders) > 0 && level < maxLevels; level++ {
		var below []string
		for _, f := range folders {
			if seen++; seen > maxFolders {
				return fmt.Errorf("awslogs: more than %d folders below the prefix", maxFolders)
			}
			years, other, err := b.folder(ctx, f, at, fn)
			if err != nil {
				return err
			}
			if years != "" {
				if err := b.series(ctx, years, at, fn); err != nil {
					return err
				}
			}
			below = append(below, other...)
		}
		folders = below
	}
	return nil
}

// folder looks at one level: series is the folder itself when years are in it,
// below are its other folders. Objects that lie in it without a date are named.
func (b *bucket) folder(ctx context.Context, name string, at bedrock.Cursors, fn func(bedrock.Object) error) (series string, below []string, err error) {
	var read map[string]string
	pages := s3.NewListObjectsV2Paginator(b.api, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &name, Delimiter: aws.String("/")})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return "", nil, translate("list the bucket", err)
		}
		for _, p := range page.CommonPrefixes {
			switch folder := aws.ToString(p.Prefix); {
			case yearFolder.MatchString("/" + folder):
				series = strings.TrimSuffix(folder, yearFolder.FindString("/" + folder)[1:])
			case !strings.HasSuffix(folder, "/data/"):
				below = append(below, folder)
			}
		}
		for _, o := range page.Contents {
			key := aws.ToString(o.Key)
			if !isLog(key) {
				continue
			}
			if read == nil {
				if read, err = at.Read(ctx, name); err != nil {
					return "", nil, err
				}
			}
			if version := aws.ToString(o.ETag); read[key] != version {
				if err := fn(bedrock.Object{Series: name, Name: key, Version: version, Size: aws.ToInt64(o.Size)}); err != nil {
					return "", nil, err
				}
			}
		}
	}
	return series, below, nil
}

// series lists the objects below dates.
func (b *bucket) series(ctx context.Context, name string, at bedrock.Cursors, fn func(bedrock.Object) error) error {
	cursor, err := at.Cursor(ctx, name)
	if err != nil {
		return err
	}
	read, err := at.Read(ctx, name)
	if err != nil {
		return err
	}
	in := &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &name}
	if cursor != "" {
		in.StartAfter = &cursor
	}
	pages := s3.NewListObjectsV2Paginator(b.api, in)
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return translate("list the bucket", err)
		}
		for _, o := range page.Contents {
			key, version := aws.ToString(o.Key), aws.ToString(o.ETag)
			if !isLog(key) || read[key] == version {
				continue
			}
			err := fn(bedrock.Object{
				Series: name, Name: key, Version: version, Size: aws.ToInt64(o.Size), Position: position(key), Forward: true,
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// position is where the cursor may stand once the key was read.
func position(key string) string {
	m := hourOfKey.FindStringSubmatch(key)
	if m == nil {
		return ""
	}
	hour, err := time.Parse(hourForm, m[2])
	if err != nil {
		return ""
	}
	return m[1] + hour.Add(-Lookback).Format(hourForm) + "/"
}

// isLog reports whether a key is a log file, and no large body or AWS's check of
// its permissions.
func isLog(key string) bool {
	return !strings.Contains(key, "/data/") && !strings.HasSuffix(key, "/") && !strings.HasSuffix(key, "amazon-bedrock-logs-permission-check")
}

// Open implements bedrock.Source.
func (b *bucket) Open(ctx context.Context, o bedrock.Object) (io.ReadCloser, error) {
	return b.get(ctx, o.Name)
}

func (b *bucket) get(ctx context.Context, key string) (io.ReadCloser, error) {
	out, err := b.api.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return nil, translate("read an object", err)
	}
	return out.Body, nil
}

// Follow implements bedrock.Source.
func (b *bucket) Follow(ctx context.Context, ref string) (io.ReadCloser, error) {
	key, ok := strings.CutPrefix(ref, "s3://"+b.name+"/")
	if !ok || !strings.HasPrefix(key, b.prefix) {
		return nil, fmt.Errorf("%w: it lies outside the connection's prefix", bedrock.ErrGone)
	}
	return b.get(ctx, key)
}

// Done implements bedrock.Source.
func (b *bucket) Done(context.Context, bedrock.Object) error { return nil }

// Close implements bedrock.Source.
func (b *bucket) Close() error { return nil }
