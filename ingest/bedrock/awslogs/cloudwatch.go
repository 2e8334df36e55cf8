package awslogs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"

	"github.com/tallystick/tallystick/ingest/bedrock"
)

// LogStream is the stream that Bedrock writes to in every log group.
const LogStream = "aws/bedrock/modelinvocations"

// rereading is how far back a stream is read again when CloudWatch does not know
// our place any more; what was read before becomes duplicates.
const rereading = 5 * time.Minute

// stream reads a log group's stream. Its position is the time of the newest event
// in milliseconds, a blank, and CloudWatch's own token, which it forgets after a day.
type stream struct {
	api   *cloudwatchlogs.Client
	group string
}

// Objects implements bedrock.Source: an object is a page of events.
func (s *stream) Objects(ctx context.Context, at bedrock.Cursors, fn func(bedrock.Object) error) error {
	position, err := at.Cursor(ctx, LogStream)
	if err != nil {
		return err
	}
	newest, token := int64(0), ""
	if millis, rest, ok := strings.Cut(position, " "); ok {
		if newest, err = strconv.ParseInt(millis, 10, 64); err == nil {
			token = rest
		}
	}
	for {
		page, err := s.page(ctx, newest, token)
		if err != nil {
			return err
		}
		next := aws.ToString(page.NextForwardToken)
		if len(page.Events) > 0 {
			newest = max(newest, aws.ToInt64(page.Events[len(page.Events)-1].Timestamp))
			err := fn(bedrock.Object{
				Series: LogStream, Position: strconv.FormatInt(newest, 10) + " " + next, Handle: page.Events,
			})
			if err != nil {
				return err
			}
		}
		if next == token || next == "" {
			return nil // the end gives the token that was asked with
		}
		token = next
	}
}

// page is the one behind token, or without a token, or when it is forgotten, the
// first one that may hold something new.
func (s *stream) page(ctx context.Context, newest int64, token string) (*cloudwatchlogs.GetLogEventsOutput, error) {
	in := &cloudwatchlogs.GetLogEventsInput{LogGroupName: &s.group, LogStreamName: aws.String(LogStream), StartFromHead: aws.Bool(true)}
	if token != "" {
		in.NextToken = &token
	} else if newest > 0 {
		in.StartTime = aws.Int64(newest - rereading.Milliseconds())
	}
	out, err := s.api.GetLogEvents(ctx, in)
	var forgotten *types.InvalidParameterException
	if token != "" && errors.As(err, &forgotten) {
		return s.page(ctx, newest, "")
	}
	return out, translate("read log events", err)
}

// Open implements bedrock.Source.
func (s *stream) Open(_ context.Context, o bedrock.Object) (io.ReadCloser, error) {
	events, ok := o.Handle.([]types.OutputLogEvent)
	if !ok {
		return nil, fmt.Errorf("awslogs: %T is no page of events", o.Handle)
	}
	lines := make([]io.Reader, 0, 2*len(events))
	for i := range events {
		lines = append(lines, strings.NewReader(aws.ToString(events[i].Message)), strings.NewReader("\n"))
	}
	return io.NopCloser(io.MultiReader(lines...)), nil
}

// Follow implements bedrock.Source: what CloudWatch has no room for lies in a
// bucket that this connection does not name.
func (s *stream) Follow(context.Context, string) (io.ReadCloser, error) {
	return nil, bedrock.ErrGone
}

// Done implements bedrock.Source.
func (s *stream) Done(context.Context, bedrock.Object) error { return nil }

// Close implements bedrock.Source.
func (s *stream) Close() error { return nil }
