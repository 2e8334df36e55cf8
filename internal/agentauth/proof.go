package agentauth

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Constants of the proofs (telemetry.proto, HelloProof and SendTelemetryRequest).
const (
	// ProofVersion is the one version of the proofs.
	ProofVersion = 1
	// ChallengeBytes is the length of a challenge's nonce.
	ChallengeBytes = 32
	// MinNonceBytes and MaxNonceBytes bound what an agent chooses at random.
	MinNonceBytes = 16
	MaxNonceBytes = 64
	// ExporterBytes is the length of the connection's exporter.
	ExporterBytes = 32

	// exporterLabel is that of RFC 9266.
	exporterLabel = "EXPORTER-Channel-Binding"

	helloDomain = "tallystick agent hello v1"
	frameDomain = "tallystick agent frame v1"
)

// ErrNotTLS13 says that a connection has no exporter to bind a proof to.
var ErrNotTLS13 = errors.New("agentauth: the connection is not TLS 1.3")

// Binding is what a hello is bound to: one connection. The zero value is that
// of a plaintext loopback connection.
type Binding [ExporterBytes]byte

// BindingOf is the exporter of a TLS connection (RFC 9266).
func BindingOf(state *tls.ConnectionState) (Binding, error) {
	if state.Version != tls.VersionTLS13 {
		return Binding{}, ErrNotTLS13
	}
	b, err := state.ExportKeyingMaterial(exporterLabel, nil, ExporterBytes)
	if err != nil {
		return Binding{}, err
	}
	return Binding(b), nil
}

// MAC is a proof.
type MAC = [sha256.Size]byte

// HelloMessage is what the mac of a hello is made over.
func HelloMessage(challenge []byte, on Binding, h *pb.HelloProof) []byte {
	b := make([]byte, 0, 320)
	b = appendPart(b, helloDomain)
	b = appendPart(b, challenge)
	b = appendPart(b, on[:])
	b = appendInt(b, uint64(h.GetVersion()))
	b = appendPart(b, h.GetTenantId())
	b = appendPart(b, h.GetAgentId())
	b = appendInt(b, uint64(h.GetProducerEpoch()))
	b = appendPart(b, h.GetAgentVersion())
	b = appendPart(b, h.GetHost())
	return appendPart(b, h.GetAgentNonce())
}

// FrameMessage is what the mac of a request without a stream is made over.
func FrameMessage(r *pb.SendTelemetryRequest) []byte {
	b := make([]byte, 0, 256+len(r.GetFrame()))
	b = appendPart(b, frameDomain)
	b = appendInt(b, uint64(r.GetVersion()))
	b = appendPart(b, r.GetTenantId())
	b = appendPart(b, r.GetAgentId())
	b = appendInt(b, uint64(r.GetProducerEpoch()))
	b = appendInt(b, uint64(r.GetSentAtUs()))
	b = appendPart(b, r.GetNonce())
	return appendPart(b, r.GetFrame())
}

// Sign proves that the agent with the secret says the message.
func Sign(secret *Secret, message []byte) MAC {
	h := hmac.New(sha256.New, secret[:])
	h.Write(message)
	var sum MAC
	h.Sum(sum[:0])
	return sum
}

// SignHello fills in the mac of a hello.
func SignHello(secret *Secret, challenge []byte, on Binding, h *pb.HelloProof) {
	mac := Sign(secret, HelloMessage(challenge, on, h))
	h.Mac = mac[:]
}

// SignFrame fills in the mac of a request without a stream.
func SignFrame(secret *Secret, r *pb.SendTelemetryRequest) {
	mac := Sign(secret, FrameMessage(r))
	r.Mac = mac[:]
}

func appendInt(b []byte, v uint64) []byte {
	b = binary.BigEndian.AppendUint32(b, 8)
	return binary.BigEndian.AppendUint64(b, v)
}
