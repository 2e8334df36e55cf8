package otlp

import (
	"strings"

	"github.com/tallystick/tallystick/internal/gpu"
)

// gpuFact is one fact that the attributes of a GPU's metric state.
type gpuFact uint8

const (
	gpuUUID gpuFact = iota
	gpuID           // unique on its host alone, unless it is a uuid
	gpuParent
	gpuInstance
	gpuProfile
	gpuIndex
	gpuModel
	gpuVendor
	gpuBus
	gpuHost
	gpuPod
	gpuNamespace
	gpuContainer
	exportedPod
	exportedNamespace
	exportedContainer
	gpuJob
	gpuCloud
	gpuRegion
	gpuInstanceType
	gpuPurchase
	gpuTeam
	gpuService
	gpuEnvironment
	hardwareType
	qualifier // what the name of a metric goes on with: see gpu.Measure
	numGPUFacts
)

// gpuAlias is one name of a fact.
type gpuAlias struct {
	key string
	to  gpuFact
	// ofPoint: of a resource it would be about the collector or the exporter, and is
	// not looked at.
	ofPoint bool
}

// gpuAliasTable lists the names of facts about GPUs, those that win first, as
// aliasTable does for calls. Who has a device is only believed of a data point: a
// resource names the pod of the exporter. That one is not believed either where it
// stands on the points, because a scrape put its own labels there; the exporter's
// labels are then the ones that begin with exported_.
//
// Sources: the DCGM exporter's labels (3.3 to 4.x) and Prometheus' rule for labels
// that collide; OpenTelemetry semantic conventions for hardware, host, cloud and
// Kubernetes; OpenLIT's GPU collector.
var gpuAliasTable = []gpuAlias{
	// Our own.
	{"tallystick.team", gpuTeam, false},
	{"tallystick.service", gpuService, false},
	{"tallystick.environment", gpuEnvironment, false},
	{"tallystick.purchase_option", gpuPurchase, false},

	// The DCGM exporter. In a pod without the host's network its Hostname is the pod's.
	{"UUID", gpuUUID, true},
	{"GPU_I_ID", gpuInstance, true},
	{"GPU_I_PROFILE", gpuProfile, true},
	{"gpu", gpuIndex, true},
	{"modelName", gpuModel, true},
	{"pci_bus_id", gpuBus, true},
	{"k8s.node.name", gpuHost, false},
	{"node", gpuHost, true},
	{"Hostname", gpuHost, true},
	{"hostname", gpuHost, true},
	{"pod", gpuPod, true},
	{"namespace", gpuNamespace, true},
	{"container", gpuContainer, true},
	{"exported_pod", exportedPod, true},
	{"exported_namespace", exportedNamespace, true},
	{"exported_container", exportedContainer, true},
	{"hpc_job", gpuJob, true},

	// OpenTelemetry's conventions.
	{"hw.type", hardwareType, false},
	{"hw.id", gpuID, true},
	{"hw.parent", gpuParent, true},
	{"hw.model", gpuModel, true},
	{"hw.name", gpuModel, true},
	{"hw.vendor", gpuVendor, true},
	{"hw.gpu.task", qualifier, true},
	{"error.type", qualifier, true},
	{"k8s.pod.name", gpuPod, true},
	{"k8s.namespace.name", gpuNamespace, true},
	{"k8s.container.name", gpuContainer, true},
	{"host.name", gpuHost, false},
	{"deployment.environment.name", gpuEnvironment, false},
	{"deployment.environment", gpuEnvironment, false},
	{"cloud.provider", gpuCloud, false},
	{"cloud.region", gpuRegion, false},
	{"host.type", gpuInstanceType, false},
	{"k8s.node.label.node.kubernetes.io/instance-type", gpuInstanceType, false},

	// Collectors of GPUs, beside the conventions.
	{"gpu.uuid", gpuUUID, true},
	{"gpu.index", gpuIndex, true},
	{"gpu.pci_address", gpuBus, true},
	{"server.address", gpuHost, false},
	{"service.instance.id", gpuHost, false}, // of a scrape: the exporter's address
}

// gpuAliasOf finds a name; its place in the table is its rank.
var gpuAliasOf = func() map[string]int {
	m := make(map[string]int, len(gpuAliasTable))
	for i, a := range gpuAliasTable {
		m[a.key] = i
	}
	return m
}()

// exporterPods are parts of the names of pods that measure devices and have none.
var exporterPods = []string{"dcgm-exporter"}

// Beginnings of the names of metrics about GPUs. Of the metrics that hardware of all
// kinds has, only those that say so are.
const (
	dcgmMetric     = "DCGM_FI_"
	gpuMetric      = "hw.gpu."
	hardwareMetric = "hw."
	typeGPU        = "gpu"
)

// isGPUMetric reports whether a metric may be about GPUs; with some names its points
// must say so themselves.
func isGPUMetric(name string) bool {
	return strings.HasPrefix(name, dcgmMetric) || strings.HasPrefix(name, gpuMetric) || strings.HasPrefix(name, hardwareMetric) && gpu.Measures(name) || name == "hw.errors"
}
