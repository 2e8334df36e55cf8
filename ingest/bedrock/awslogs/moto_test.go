package awslogs

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	logtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/tallystick/tallystick/ingest"
	"github.com/tallystick/tallystick/ingest/bedrock"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/connections"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// endpointEnv is moto's address; make test/bedrock sets it.
const endpointEnv = "TALLYSTICK_TEST_AWS"

const (
	region     = "eu-central-1"
	bucketName = "acme-bedrock-logs"
	roleARN    = "arn:aws:iam::123456789012:role/tallystick"
)

// cloud is moto behind a recorder of the calls that we make.
type cloud struct {
	url string // of the recorder
	s3  *s3.Client
	sqs *sqs.Client
	cwl *cloudwatchlogs.Client

	mu       sync.Mutex // protects what follows
	calls    map[string]int
	external map[string]bool // external ids that roles were assumed with
	seconds  map[string]bool // and how long for
	keys     map[string]bool // access keys that calls were signed with
}

func newCloud(t *testing.T) *cloud {
	t.Helper()
	endpoint := os.Getenv(endpointEnv)
	if endpoint == "" {
		t.Skipf("SKIPPED, NOT TESTED: %s is not set; make test/bedrock starts moto and sets it", endpointEnv)
	}
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "test", "AWS_SESSION_TOKEN": "", "AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": "",
		"AWS_DEFAULT_REGION": "", "AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_PROFILE": "",
	} {
		t.Setenv(name, value)
	}
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	c := &cloud{calls: map[string]int{}, external: map[string]bool{}, seconds: map[string]bool{}, keys: map[string]bool{}}
	res, err := http.Post(endpoint+"/moto-api/reset", "", nil) //nolint:noctx // a test's
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host }}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.record(t, r)
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	c.url = server.URL
	owner := aws.Config{Region: region, BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider("customer", "test", "")}
	c.s3 = s3.NewFromConfig(owner, func(o *s3.Options) { o.UsePathStyle = true })
	c.sqs, c.cwl = sqs.NewFromConfig(owner), cloudwatchlogs.NewFromConfig(owner)
	_, err = c.s3.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String(bucketName)})
	var exists interface{ ErrorCode() string }
	if err != nil && !(errors.As(err, &exists) && strings.HasPrefix(exists.ErrorCode(), "Bucket")) {
		// us-east-1 alone takes a bucket without a location.
		if _, err := s3.NewFromConfig(owner, func(o *s3.Options) { o.UsePathStyle, o.Region = true, "us-east-1" }).
			CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String(bucketName)}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// record names a call by the protocol of its service.
func (c *cloud) record(t *testing.T, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	scope := r.Header.Get("Authorization")
	service := "s3"
	if _, rest, ok := strings.Cut(scope, "Credential="); ok {
		if parts := strings.Split(strings.SplitN(rest, ",", 2)[0], "/"); len(parts) == 5 {
			service = parts[3]
			c.mu.Lock()
			c.keys[service+" "+parts[0]] = true
			c.mu.Unlock()
		}
	}
	call := r.Method + " " + r.URL.Path
	target := r.Header.Get("X-Amz-Target")
	q := r.URL.Query()
	switch {
	case target != "":
		call = target[strings.LastIndexByte(target, '.')+1:]
	case service == "sts":
		form, err := url.ParseQuery(string(body))
		if err != nil {
			t.Error(err)
		}
		call = form.Get("Action")
		c.mu.Lock()
		c.external[form.Get("ExternalId")] = true
		c.seconds[form.Get("DurationSeconds")] = true
		c.mu.Unlock()
	case r.Method == http.MethodGet && q.Get("list-type") == "2":
		call = "ListObjectsV2"
	case r.Method == http.MethodGet && (len(q) == 0 || q.Get("x-id") == "GetObject"):
		call = "GetObject"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[service+" "+call]++
}

// made are the kinds of calls so far, and forgets them.
func (c *cloud) made() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := slices.Sorted(maps.Keys(c.calls))
	clear(c.calls)
	return list
}

func (c *cloud) put(t *testing.T, key string, body []byte) {
	t.Helper()
	if strings.HasSuffix(key, ".gz") {
		var z bytes.Buffer
		g := gzip.NewWriter(&z)
		_, _ = g.Write(body)
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		body = z.Bytes()
	}
	if _, err := c.s3.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucketName), Key: &key, Body: bytes.NewReader(body)}); err != nil {
		t.Fatal(err)
	}
}

// key is where Bedrock puts a file.
func key(account, region, hour, id string) string {
	return "prod/AWSLogs/" + account + "/BedrockModelInvocationLogs/" + region + "/" + hour + "/20261120T100000123Z_" + id + ".json.gz"
}

const prose = "Tell me the secret recipe of grandmother's plum cake"

// lines are records with request ids of their own.
func lines(prefix string, n int) []byte {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, `{"schemaType":"ModelInvocationLog","timestamp":"2026-11-20T10:00:00Z","accountId":"111122223333","region":"us-east-1","requestId":"%s-%d",`+
			`"operation":"Converse","modelId":"amazon.nova-lite-v1:0","input":{"inputBodyJson":{"text":%q},"inputTokenCount":4},`+
			`"output":{"outputBodyJson":{"usage":{"inputTokens":4,"outputTokens":2,"totalTokens":6},"output":%q},"outputTokenCount":2}}`+"\n", prefix, i, prose, prose)
	}
	return b.Bytes()
}

// sink takes events.
type sink struct {
	mu     sync.Mutex // protects events
	events map[string]event.Event
	times  int
}

func (s *sink) Submit(_ context.Context, _ authn.Principal, events []event.Event) (ingest.Outcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.events == nil {
		s.events = map[string]event.Event{}
	}
	for _, e := range events {
		s.events[e.ID] = e
		s.times++
	}
	return ingest.Outcome{Accepted: len(events)}, nil
}

func (s *sink) counts() (ids, times int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.events), s.times
}

// A poller reads a bucket as a role: what arrives, also late, and nothing twice;
// by exactly the calls that may be made.
func TestBucket(t *testing.T) {
	c := newCloud(t)
	ring := testenv.Ring(t, "acme")
	store := connections.NewStore(testenv.MigratedPostgres(t).Open(t, postgres.RoleApp), ring)
	by := authn.Principal{Subject: "admin", Tenants: []tenant.ID{"acme"}, Scopes: authn.AllScopes}
	conn, err := store.Create(t.Context(), by, connections.New{Tenant: "acme", Name: "logs", Place: connections.Place{
		Source: connections.S3, Bucket: bucketName, Prefix: "prod/", Region: region, RoleARN: roleARN,
	}})
	if err != nil {
		t.Fatal(err)
	}
	c.put(t, key("111122223333", "us-east-1", "2026/11/20/10", "a"), lines("a", 3))
	c.put(t, key("111122223333", "us-east-1", "2026/11/20/11", "b"), lines("b", 2))
	c.put(t, key("444455556666", "eu-west-1", "2026/11/20/09", "c"), append(lines("c", 1), "garbage\n"...))
	c.put(t, "prod/AWSLogs/111122223333/BedrockModelInvocationLogs/amazon-bedrock-logs-permission-check", nil)
	c.put(t, "prod/flat.jsonl", lines("flat", 1))
	c.put(t, "test/AWSLogs/111122223333/BedrockModelInvocationLogs/us-east-1/2026/11/20/10/other.json.gz", lines("elsewhere", 5))
	large := "prod/AWSLogs/111122223333/BedrockModelInvocationLogs/us-east-1/2026/11/20/10/data/x_output.json.gz"
	c.put(t, large, []byte(`{"usage":{"inputTokens":1000,"outputTokens":200,"totalTokens":1200},"output":"`+prose+`"}`))
	c.put(t, "test/secret.json", []byte(`{"usage":{"inputTokens":7,"outputTokens":7,"totalTokens":14}}`))
	follow := func(id, ref string) string {
		return `{"timestamp":"2026-11-20T10:00:00Z","requestId":"` + id + `","operation":"Converse","modelId":"m","input":{},"output":{"outputBodyS3Path":"s3://` + ref + `"}}` + "\n"
	}
	c.put(t, key("111122223333", "us-east-1", "2026/11/20/10", "follow"), []byte(follow("f1", bucketName+"/"+large)+follow("f2", bucketName+"/test/secret.json")))

	var took sink
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var said bytes.Buffer
	poller := &bedrock.Poller{
		Store: store, Sink: &took, Keys: ring, Settings: store, Tenants: func() []tenant.ID { return []tenant.ID{"acme"} }, Interval: 50 * time.Millisecond,
		Open: func(ctx context.Context, b *connections.Bedrock) (bedrock.Source, error) {
			return Open(ctx, b, Options{Endpoint: c.url})
		},
		Log: slog.New(slog.NewTextHandler(&said, nil)),
	}
	go func() { ended <- poller.Run(ctx) }()
	wait := func(ids int) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if n, _ := took.counts(); n == ids {
				return
			}
			if time.Now().After(deadline) {
				n, _ := took.counts()
				list, err := store.List(t.Context(), "acme", "", 1)
				t.Fatalf("%d events, want %d: %+v, %v", n, ids, list, err)
			}
		}
	}
	wait(9)
	c.put(t, key("111122223333", "us-east-1", "2026/11/21/08", "d"), lines("d", 1))
	wait(10)
	c.put(t, key("111122223333", "us-east-1", "2026/11/20/10", "0-late"), lines("late", 1)) // 22 hours behind the newest
	wait(11)
	passes := func() time.Time {
		list, err := store.List(t.Context(), "acme", "", 1)
		if err != nil {
			t.Fatal(err)
		}
		return list[0].State.SucceededAt
	}
	for before := passes(); !passes().After(before); {
		time.Sleep(20 * time.Millisecond)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if ids, times := took.counts(); ids != 11 || times != 11 {
		t.Errorf("%d events were sent %d times", ids, times)
	}
	for _, e := range took.events {
		want := map[string]int64{"f1": 1200, "f2": 0}[e.ProviderRequestID]
		if (e.ProviderRequestID == "f1" || e.ProviderRequestID == "f2") && e.Tokens.Total() != want {
			t.Errorf("%s has %d tokens, want %d", e.ProviderRequestID, e.Tokens.Total(), want)
		}
		if s := fmt.Sprintf("%+v", e); strings.Contains(s, "plum") || strings.HasPrefix(e.ProviderRequestID, "elsewhere") {
			t.Errorf("an event holds %s", s)
		}
	}
	if got, want := c.made(), []string{"s3 GetObject", "s3 ListObjectsV2", "sts AssumeRole"}; !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}
	if len(c.external) != 1 || !c.external[conn.Place.ExternalID] || len(c.seconds) != 1 || !c.seconds["900"] {
		t.Errorf("assumed with %v for %v", c.external, c.seconds)
	}
	if c.keys["s3 ours"] || !c.keys["sts ours"] {
		t.Errorf("signed with %v: the bucket is read as the role and nobody else", c.keys)
	}
	if strings.Contains(said.String(), "plum") {
		t.Errorf("the log says %s", said.String())
	}
}

// cursorMap is Cursors in memory.
type cursorMap map[string]string

func (m cursorMap) Cursor(_ context.Context, series string) (string, error) { return m[series], nil }
func (m cursorMap) Read(context.Context, string) (map[string]string, error) { return nil, nil }

// read is a pass over a source, without a poller.
func read(t *testing.T, src bedrock.Source, at cursorMap, to *sink) error {
	t.Helper()
	job := bedrock.Job{Tenant: "acme", Metadata: true, Follow: src.Follow}
	return src.Objects(t.Context(), at, func(o bedrock.Object) error {
		body, err := src.Open(t.Context(), o)
		if err != nil {
			return err
		}
		defer body.Close()
		var sum bedrock.Summary
		if err := job.Import(t.Context(), to, o.Name, body, &sum); err != nil {
			return err
		}
		if o.Position != "" {
			at[o.Series] = o.Position
		}
		return src.Done(t.Context(), o)
	})
}

func TestQueue(t *testing.T) {
	c := newCloud(t)
	made, err := c.sqs.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: aws.String("logs")})
	if err != nil {
		t.Fatal(err)
	}
	send := func(body string) {
		t.Helper()
		if _, err := c.sqs.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: made.QueueUrl, MessageBody: &body}); err != nil {
			t.Fatal(err)
		}
	}
	notification := func(bucket, key string) string {
		return `{"Records":[{"eventName":"ObjectCreated:Put","s3":{"bucket":{"name":"` + bucket + `"},"object":{"key":"` + url.QueryEscape(key) + `","size":7}}}]}`
	}
	direct, wrapped, bridged := "prod/a b=é.jsonl", "prod/b.jsonl", "prod/c.jsonl"
	for _, k := range []string{direct, wrapped, bridged, "test/d.jsonl"} {
		c.put(t, k, lines(k, 2))
	}
	send(notification(bucketName, direct))
	inner, err := json.Marshal(notification(bucketName, wrapped))
	if err != nil {
		t.Fatal(err)
	}
	send(`{"Type":"Notification","Message":` + string(inner) + `}`)
	send(`{"detail-type":"Object Created","detail":{"bucket":{"name":"` + bucketName + `"},"object":{"key":"` + bridged + `"}}}`)
	send(notification("somebody-elses", direct))
	send(notification(bucketName, "test/d.jsonl")) // outside the prefix
	send(strings.Replace(notification(bucketName, wrapped), "Created:Put", "Removed:Delete", 1))
	send(`{"Service":"Amazon S3","Event":"s3:TestEvent"}`)
	send("no JSON")
	src, err := Open(t.Context(), &connections.Bedrock{Place: connections.Place{
		Source: connections.SQS, Bucket: bucketName, Prefix: "prod/", Queue: aws.ToString(made.QueueUrl), Region: region, RoleARN: roleARN, ExternalID: "x",
	}}, Options{Endpoint: c.url})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	var took sink
	for range 2 {
		if err := read(t, src, cursorMap{}, &took); err != nil {
			t.Fatal(err)
		}
	}
	if ids, times := took.counts(); ids != 6 || times != 6 {
		t.Errorf("%d events were sent %d times, want 6 once", ids, times)
	}
	if got, want := c.made(), []string{"s3 GetObject", "sqs DeleteMessage", "sqs ReceiveMessage", "sts AssumeRole"}; !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}
}

func TestLogGroup(t *testing.T) {
	c := newCloud(t)
	group := "/aws/bedrock/invocations"
	if _, err := c.cwl.CreateLogGroup(t.Context(), &cloudwatchlogs.CreateLogGroupInput{LogGroupName: &group}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.cwl.CreateLogStream(t.Context(), &cloudwatchlogs.CreateLogStreamInput{LogGroupName: &group, LogStreamName: aws.String(LogStream)}); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-time.Hour)
	write := func(prefix string, n int) {
		t.Helper()
		var events []logtypes.InputLogEvent
		for _, l := range bytes.Split(bytes.TrimSpace(lines(prefix, n)), []byte("\n")) {
			at = at.Add(time.Second)
			events = append(events, logtypes.InputLogEvent{Message: aws.String(string(l)), Timestamp: aws.Int64(at.UnixMilli())})
		}
		if _, err := c.cwl.PutLogEvents(t.Context(), &cloudwatchlogs.PutLogEventsInput{LogGroupName: &group, LogStreamName: aws.String(LogStream), LogEvents: events}); err != nil {
			t.Fatal(err)
		}
	}
	src, err := Open(t.Context(), &connections.Bedrock{Place: connections.Place{
		Source: connections.CloudWatch, LogGroup: group, Region: region, RoleARN: roleARN, ExternalID: "x",
	}}, Options{Endpoint: c.url})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	var took sink
	cursor := cursorMap{}
	check := func(wantIDs, wantTimes int) {
		t.Helper()
		if err := read(t, src, cursor, &took); err != nil {
			t.Fatal(err)
		}
		if ids, times := took.counts(); ids != wantIDs || times != wantTimes {
			t.Errorf("%d events were sent %d times, want %d and %d", ids, times, wantIDs, wantTimes)
		}
	}
	write("a", 5)
	check(5, 5)
	check(5, 5)
	write("b", 3)
	check(8, 8)
	// Our place is forgotten: the last minutes are read again, under the same ids.
	position, _, _ := strings.Cut(cursor[LogStream], " ")
	cursor[LogStream] = position + " "
	check(8, 16)
	if got, want := c.made(), []string{"logs GetLogEvents", "sts AssumeRole"}; !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}
}

// What a person must mend says so, and what passes does not.
func TestErrors(t *testing.T) {
	c := newCloud(t)
	open := func(bucket, prefix string) bedrock.Source {
		src, err := Open(t.Context(), &connections.Bedrock{Place: connections.Place{
			Source: connections.S3, Bucket: bucket, Prefix: prefix, Region: region, RoleARN: roleARN, ExternalID: "x",
		}}, Options{Endpoint: c.url})
		if err != nil {
			t.Fatal(err)
		}
		return src
	}
	src := open(bucketName, "")
	if _, err := src.Open(t.Context(), bedrock.Object{Name: "nothing"}); !errors.Is(err, bedrock.ErrGone) {
		t.Errorf("no object: %v", err)
	}
	if err := read(t, open("no-such-bucket-at-all", ""), cursorMap{}, &sink{}); err == nil || errors.Is(err, bedrock.ErrGone) {
		t.Errorf("no bucket: %v", err)
	}
	if _, err := src.Follow(t.Context(), "s3://"+bucketName+"-other/x"); !errors.Is(err, bedrock.ErrGone) {
		t.Errorf("another bucket: %v", err)
	}
	denied := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `<ErrorResponse><Error><Code>AccessDenied</Code><Message>`+prose+`</Message></Error></ErrorResponse>`)
	}))
	defer denied.Close()
	c.url = denied.URL
	if err := read(t, open(bucketName, ""), cursorMap{}, &sink{}); !errors.Is(err, bedrock.ErrDenied) || strings.Contains(err.Error(), "plum") {
		t.Errorf("denied: %v", err)
	}
}
