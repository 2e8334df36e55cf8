package awslogs

import (
	"context"
	"encoding/json"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/tallystick/tallystick/ingest/bedrock"
)

const (
	// visibilitySeconds is how long a message is ours: time for its objects.
	visibilitySeconds = 15 * 60
	// waitSeconds is how long one question waits for messages.
	waitSeconds = 1
	maxMessages = 10
)

// queue hears of a bucket's new objects by S3's notifications, sent to SQS
// directly, by SNS or by EventBridge.
type queue struct {
	*bucket
	api *sqs.Client
	url string
}

// Objects implements bedrock.Source: it takes messages until there are none. A
// message is deleted when all its objects are done; one that names nothing of
// ours is deleted at once.
func (q *queue) Objects(ctx context.Context, _ bedrock.Cursors, fn func(bedrock.Object) error) error {
	for {
		out, err := q.api.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
			QueueUrl: &q.url, MaxNumberOfMessages: maxMessages, VisibilityTimeout: visibilitySeconds, WaitTimeSeconds: waitSeconds,
		})
		if err != nil {
			return translate("receive notifications", err)
		}
		if len(out.Messages) == 0 {
			return nil
		}
		for i := range out.Messages {
			if err := q.message(ctx, &out.Messages[i], fn); err != nil {
				return err
			}
		}
	}
}

func (q *queue) message(ctx context.Context, m *types.Message, fn func(bedrock.Object) error) error {
	for _, o := range notified([]byte(aws.ToString(m.Body))) {
		if o.bucket != q.name || !strings.HasPrefix(o.key, q.prefix) || !isLog(o.key) {
			continue
		}
		if err := fn(bedrock.Object{Series: "queue", Name: o.key, Size: o.size}); err != nil {
			return err
		}
	}
	_, err := q.api.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &q.url, ReceiptHandle: m.ReceiptHandle})
	return translate("delete a notification", err)
}

// notice is an object that a notification tells of.
type notice struct {
	bucket, key string
	size        int64
}

// s3Event has what the three forms of a notification hold.
type s3Event struct {
	Message string // SNS: the event as text
	Records []struct {
		EventName string `json:"eventName"`
		S3        struct {
			Bucket struct{ Name string }
			Object struct {
				Key  string
				Size int64
			}
		}
	}
	DetailType string `json:"detail-type"` // EventBridge
	Detail     struct {
		Bucket struct{ Name string }
		Object struct {
			Key  string
			Size int64
		}
	}
}

// notified lists the objects that were made, by a message's body; what is no
// notification has none.
func notified(body []byte) (list []notice) {
	var ev s3Event
	if json.Unmarshal(body, &ev) != nil {
		return nil
	}
	if ev.Message != "" && len(ev.Records) == 0 {
		inner := []byte(ev.Message)
		ev = s3Event{}
		if json.Unmarshal(inner, &ev) != nil {
			return nil
		}
	}
	for _, r := range ev.Records {
		if !strings.HasPrefix(strings.TrimPrefix(r.EventName, "s3:"), "ObjectCreated:") {
			continue
		}
		// Keys of this form are encoded as in a form's body.
		if key, err := url.QueryUnescape(r.S3.Object.Key); err == nil {
			list = append(list, notice{r.S3.Bucket.Name, key, r.S3.Object.Size})
		}
	}
	if ev.DetailType == "Object Created" {
		list = append(list, notice{ev.Detail.Bucket.Name, ev.Detail.Object.Key, ev.Detail.Object.Size})
	}
	return list
}
