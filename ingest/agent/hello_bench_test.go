package agent_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/tallystick/tallystick/internal/agentauth"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// generatorEnv has the test binary be the agents of a benchmark: a process of its
// own, so that what they cost and what the gateway costs can be told apart.
const generatorEnv = "TALLYSTICK_HELLO_GENERATOR"

// Ways in which the generator speaks.
const (
	// asAgents is the gRPC client that the agent has.
	asAgents = "agents"
	// lean writes the few HTTP/2 frames of a hello itself: the same bytes on the
	// wire for a part of the work.
	lean = "lean"
)

// helloCallers of the agents say hello at once.
const helloCallers = 250

// helloJob is what a generator is to do.
type helloJob struct {
	Addr   string
	Roots  []byte // PEM
	Agents []string
	Way    string
	// Resume has each caller keep the tickets that it is given.
	Resume bool
	// Classic offers no key exchange with ML-KEM, which is otherwise used.
	Classic bool
	Callers int
	Hellos  int64
}

// helloResult is what it did.
type helloResult struct {
	Resumed int64
	Took    time.Duration
	CPU     time.Duration
}

// generate runs a job from stdin to stdout.
func generate() error {
	var job helloJob
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(job.Roots) {
		return errors.New("no roots")
	}
	who := make([]agentauth.Credential, len(job.Agents))
	for i, text := range job.Agents {
		var err error
		if who[i], err = agentauth.ParseCredential(text); err != nil {
			return err
		}
	}
	var left, resumed atomic.Int64
	left.Store(job.Hellos)
	var all sync.WaitGroup
	failed := make(chan error, job.Callers)
	began := time.Now()
	each := len(who) / job.Callers
	for i := range job.Callers {
		c := &helloCaller{
			addr: job.Addr, config: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, ServerName: "127.0.0.1", NextProtos: []string{"h2"}},
		}
		if job.Resume {
			c.config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		}
		if job.Classic {
			c.config.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256}
		}
		hello := map[string]func(agentauth.Credential) (bool, error){asAgents: c.asAgent, lean: c.lean}[job.Way]
		all.Go(func() {
			// Each caller has agents of its own: a newer stream ends an older one.
			for n := 0; left.Add(-1) >= 0; n++ {
				again, err := hello(who[i*each+n%each])
				if err != nil {
					failed <- err
					return
				}
				if again {
					resumed.Add(1)
				}
			}
		})
	}
	all.Wait()
	close(failed)
	if err := <-failed; err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(helloResult{Resumed: resumed.Load(), Took: time.Since(began), CPU: cpu()})
}

// helloCaller makes one connection after the other.
type helloCaller struct {
	addr   string
	config *tls.Config
}

func (c *helloCaller) asAgent(who agentauth.Credential) (resumed bool, err error) {
	conn, err := dialGateway(c.addr, credentials.NewTLS(c.config))
	if err != nil {
		return false, err
	}
	defer conn.Close()
	s, err := connect(context.Background(), conn, who, 1)
	if err != nil {
		return false, err
	}
	defer s.cancel()
	p, ok := peer.FromContext(s.Context())
	if !ok {
		return false, errors.New("no peer")
	}
	return p.AuthInfo.(credentials.TLSInfo).State.DidResume, nil
}

// HTTP/2 frame types and flags (RFC 9113, section 6).
const (
	h2Data, h2Headers, h2Settings = 0x0, 0x1, 0x4
	h2Ack, h2EndHeaders           = 0x1, 0x4
)

func appendH2(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// callHeaders are those of Connect in HPACK, none of them indexed (RFC 7541).
func callHeaders(authority string) []byte {
	text := func(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }
	b := []byte{0x83, 0x87} // :method POST, :scheme https
	b = text(append(b, 0x04), pb.AgentGateway_Connect_FullMethodName)
	b = text(append(b, 0x01), authority)
	b = text(append(b, 0x0f, 0x10), "application/grpc") // content-type
	return text(text(append(b, 0x00), "te"), "trailers")
}

// lean says hello with no library but TLS.
func (c *helloCaller) lean(who agentauth.Credential) (resumed bool, err error) {
	conn, err := tls.Dial("tcp", c.addr, c.config)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	first := append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), appendH2(nil, h2Settings, 0, 0, nil)...)
	if _, err := conn.Write(appendH2(first, h2Headers, h2EndHeaders, 1, callHeaders(c.addr))); err != nil {
		return false, err
	}
	h := &h2Reader{conn: conn}
	frame, err := h.frame()
	if err != nil {
		return false, err
	}
	state := conn.ConnectionState()
	s := &stream{who: who, epoch: 1, challenge: frame.GetChallenge().GetNonce()}
	if s.on, err = agentauth.BindingOf(&state); err != nil {
		return false, err
	}
	b, err := proto.Marshal(&pb.AgentFrame{Body: &pb.AgentFrame_Hello{Hello: s.proof()}})
	if err != nil {
		return false, err
	}
	message := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
	if _, err := conn.Write(appendH2(h.answer, h2Data, 0, 1, message)); err != nil {
		return false, err
	}
	if frame, err = h.frame(); err == nil && frame.GetHello().GetAgentId() != who.Agent {
		err = fmt.Errorf("got %v", frame)
	}
	return state.DidResume, err
}

// h2Reader reads what the gateway says.
type h2Reader struct {
	conn   io.Reader
	buf    bytes.Buffer
	answer []byte // what it wants acknowledged
}

// frame is the next message of the stream: each is one DATA frame.
func (h *h2Reader) frame() (*pb.GatewayFrame, error) {
	for {
		for h.buf.Len() >= 9 {
			head := h.buf.Bytes()
			n := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
			if h.buf.Len() < 9+n {
				break
			}
			kind, flags := head[3], head[4]
			h.buf.Next(9)
			body := h.buf.Next(n)
			switch {
			case kind == h2Settings && flags&h2Ack == 0:
				h.answer = appendH2(h.answer, h2Settings, h2Ack, 0, nil)
			case kind == h2Headers && flags&0x1 != 0:
				return nil, errors.New("the call has ended")
			case kind == h2Data && len(body) > 5:
				f := &pb.GatewayFrame{}
				return f, proto.Unmarshal(body[5:], f)
			}
		}
		b := h.buf.AvailableBuffer()
		if cap(b) < 4096 {
			h.buf.Grow(4096)
			b = h.buf.AvailableBuffer()
		}
		n, err := h.conn.Read(b[:cap(b)])
		if h.buf.Write(b[:n]); err != nil {
			return nil, err
		}
	}
}

// BenchmarkHello is one hello, of agents in a process of their own on the same
// machine: on a new connection with a full TLS handshake, on a new connection
// that resumes a session, and as a new stream of a connection that stands. 250 of
// the 2,000 agents of 10 tenants come at once. What Postgres costs is in the rate,
// and in neither CPU time. handshakes/s is what TLS alone makes of both CPUs in the
// same run: the key exchange with ML-KEM is the most of a hello, on both sides.
func BenchmarkHello(b *testing.B) {
	r := newReal(b, benchAgents, nil)
	for _, way := range []string{lean, asAgents} {
		b.Run("full/"+way, func(b *testing.B) { r.benchHello(b, helloJob{Way: way, Callers: helloCallers}) })
		b.Run("resumed/"+way, func(b *testing.B) { r.benchHello(b, helloJob{Way: way, Callers: helloCallers, Resume: true}) })
	}
	b.Run("full/classic", func(b *testing.B) { r.benchHello(b, helloJob{Way: lean, Callers: helloCallers, Classic: true}) })
	b.Run("tls_alone", r.benchHandshake)
	b.Run("new_stream", func(b *testing.B) { r.benchStreamHello(b, 64) })
}

func (r *real) benchHello(b *testing.B, job helloJob) {
	job.Hellos = int64(b.N)
	used, questions := cpu(), r.store.questions.Load()
	got := r.sayHello(b, job)
	used = cpu() - used
	n := float64(b.N)
	b.ReportMetric(n/got.Took.Seconds(), "hellos/s")
	b.ReportMetric(float64(used.Microseconds())/n, "gateway-us/hello")
	b.ReportMetric(float64(got.CPU.Microseconds())/n, "agents-us/hello")
	b.ReportMetric(float64(r.store.questions.Load()-questions)/n, "questions/hello")
}

// sayHello has agents in a process of their own say hello as often as the job has it,
// and wants all of them to be admitted.
func (r *real) sayHello(t testing.TB, job helloJob) (got helloResult) {
	t.Helper()
	roots, err := os.ReadFile(r.cert)
	if err != nil {
		t.Fatal(err)
	}
	job.Addr, job.Roots = r.addr, roots
	for _, who := range r.agents {
		job.Agents = append(job.Agents, who.Text())
	}
	input, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), generatorEnv+"=1", "GOGC=400") // thousands of agents have as many heaps
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), os.Stderr
	admitted := r.Stats().Admitted
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if n := r.Stats().Admitted - admitted; n != job.Hellos {
		t.Errorf("%d of %d were admitted", n, job.Hellos)
	}
	if first := min(int64(job.Callers), job.Hellos); job.Resume && got.Resumed < job.Hellos-first || !job.Resume && got.Resumed != 0 {
		t.Errorf("%d of %d were resumed", got.Resumed, job.Hellos)
	}
	return got
}

// benchHandshake is full handshakes and nothing else, both sides in one process.
func (r *real) benchHandshake(b *testing.B) {
	config, roots, _ := certificate(b)
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(io.Discard, conn) // and with it the handshake, until the other side closes
			}()
		}
	}()
	used := cpu()
	b.SetParallelism(32)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})
			if err != nil {
				b.Error(err)
				return
			}
			_ = conn.Close()
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "handshakes/s")
	b.ReportMetric(float64((cpu()-used).Microseconds())/float64(b.N), "cpu-us/handshake")
}

// benchStreamHello has agents and gateway in one process.
func (r *real) benchStreamHello(b *testing.B, callers int) {
	ctx := b.Context()
	turns := make(chan int)
	var all sync.WaitGroup
	for i := range callers {
		conn := r.dial(b)
		all.Go(func() {
			for n := range turns {
				s, err := connect(ctx, conn, r.agents[i*8+n%8], 1)
				if err != nil {
					b.Error(err)
					continue
				}
				s.cancel()
			}
		})
	}
	used := cpu()
	n := 0
	for b.Loop() {
		turns <- n
		n++
	}
	close(turns)
	all.Wait()
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "hellos/s")
	b.ReportMetric(float64((cpu()-used).Microseconds())/float64(n), "cpu-us/hello")
}
