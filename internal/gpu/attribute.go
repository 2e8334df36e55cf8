package gpu

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Rule gives workloads that fit a team, a service or an environment. Every
// pattern that is set must fit, with * for any characters but none for a slash
// (path.Match); the first rule that fits and gives a field decides it.
type Rule struct {
	Namespace string `yaml:"namespace"`
	Pod       string `yaml:"pod"`
	Job       string `yaml:"job"`
	Process   string `yaml:"process"`

	Team        string `yaml:"team"`
	Service     string `yaml:"service"`
	Environment string `yaml:"environment"`
}

// maxRules bounds a rules file.
const maxRules = 10_000

// ParseRules reads a YAML list of rules, under the key rules. A key that is not
// one, a bad pattern and a rule that gives nothing are errors that name it.
func ParseRules(r io.Reader) ([]Rule, error) {
	var doc struct {
		Rules []Rule `yaml:"rules"`
	}
	d := yaml.NewDecoder(io.LimitReader(r, 4<<20))
	d.KnownFields(true)
	if err := d.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("gpu: rules: %w", err)
	}
	if len(doc.Rules) > maxRules {
		return nil, fmt.Errorf("gpu: %d rules; at most %d", len(doc.Rules), maxRules)
	}
	for i, rule := range doc.Rules {
		for name, pattern := range map[string]string{"namespace": rule.Namespace, "pod": rule.Pod, "job": rule.Job, "process": rule.Process} {
			if _, err := path.Match(pattern, ""); err != nil {
				return nil, fmt.Errorf("gpu: rules[%d].%s: bad pattern", i, name)
			}
		}
		if rule.Team == "" && rule.Service == "" && rule.Environment == "" {
			return nil, fmt.Errorf("gpu: rules[%d] gives no team, service or environment", i)
		}
	}
	return doc.Rules, nil
}

// Attributor says which pod, job and team a process on a device belongs to. It
// reads, for processes on devices only: their cgroup, the few variables that
// name a Slurm job, and the names of the kubelet's log folders. It never reads
// a command line, and of the environment keeps nothing else.
type Attributor struct {
	rules []Rule
	proc  string // /proc
	pods  string // /var/log/pods: NAMESPACE_POD_UID/CONTAINER
}

// NewAttributor applies the rules in their order. root is where the host's file
// system is seen; / or, in a container with it mounted, such as /host.
func NewAttributor(root string, rules []Rule) *Attributor {
	return &Attributor{rules: rules, proc: filepath.Join(root, "proc"), pods: filepath.Join(root, "var/log/pods")}
}

// Attribute fills in what it can find out of each sample's workloads. Whatever is
// known already stays. A process that has ended meanwhile stays without an owner.
func (a *Attributor) Attribute(s *Snapshot) {
	var pods map[string]podName // read at most once a look, when a pod is met
	for _, m := range s.Samples {
		for _, w := range m.Workloads {
			if w.Pid != nil {
				a.process(w, &pods)
			}
			a.apply(w)
		}
	}
}

// process looks up the pod and the job of a process.
func (a *Attributor) process(w *pb.GpuWorkload, pods *map[string]podName) {
	dir := filepath.Join(a.proc, strconv.FormatUint(uint64(*w.Pid), 10))
	cgroup, err := readSome(filepath.Join(dir, "cgroup"))
	if err != nil {
		return
	}
	if uid := podUID(cgroup); uid != "" && w.Pod == "" {
		if *pods == nil {
			*pods = a.podNames()
		}
		name, ok := (*pods)[uid]
		if !ok {
			name.pod = uid // better a pod without a name than none
		}
		w.Namespace, w.Pod = clip(name.namespace), clip(name.pod)
	}
	if w.Job == "" {
		w.Job = slurmJob(cgroup)
	}
	if w.Job == "" {
		if environ, err := readSome(filepath.Join(dir, "environ")); err == nil {
			w.Job = clip(slurmVariable(environ))
		}
	}
}

// apply gives the workload what the rules say.
func (a *Attributor) apply(w *pb.GpuWorkload) {
	for _, r := range a.rules {
		if !fits(r.Namespace, w.Namespace) || !fits(r.Pod, w.Pod) || !fits(r.Job, w.Job) || !fits(r.Process, w.ProcessName) {
			continue
		}
		if w.Team == "" {
			w.Team = clip(r.Team)
		}
		if w.Service == "" {
			w.Service = clip(r.Service)
		}
		if w.Environment == "" {
			w.Environment = clip(r.Environment)
		}
	}
}

// fits reports whether a name fits a pattern; no pattern fits everything.
func fits(pattern, name string) bool {
	if pattern == "" {
		return true
	}
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}

// Cgroup paths name pods as kubepods…/pod<uid>, with _ for - under systemd, and
// Slurm's jobs as …/job_<id>/….
var (
	podInCgroup = regexp.MustCompile(`pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})`)
	jobInCgroup = regexp.MustCompile(`slurm[^\n]*/job_([0-9]{1,18})(/|\n|$)`)
)

func podUID(cgroup []byte) string {
	if m := podInCgroup.FindSubmatch(cgroup); m != nil {
		return strings.ReplaceAll(string(m[1]), "_", "-")
	}
	return ""
}

func slurmJob(cgroup []byte) string {
	if m := jobInCgroup.FindSubmatch(cgroup); m != nil {
		return string(m[1])
	}
	return ""
}

// slurmVariable is the job's id out of a process's environment, and nothing else
// of it.
func slurmVariable(environ []byte) string {
	for _, v := range bytes.Split(environ, []byte{0}) {
		if id, ok := bytes.CutPrefix(v, []byte("SLURM_JOB_ID=")); ok && len(id) <= 18 && len(bytes.Trim(id, "0123456789")) == 0 {
			return string(id)
		}
	}
	return ""
}

// podName is how people call a pod.
type podName struct{ namespace, pod string }

// podNames reads the names of the pods on this node, by uid, from the folders
// that the kubelet keeps their logs in. It opens none of them.
func (a *Attributor) podNames() map[string]podName {
	found := map[string]podName{}
	entries, err := os.ReadDir(a.pods)
	if err != nil {
		return found
	}
	for _, e := range entries {
		if parts := strings.Split(e.Name(), "_"); len(parts) == 3 && e.IsDir() {
			found[parts[2]] = podName{parts[0], parts[1]}
		}
	}
	return found
}

// readSome reads at most 256 KiB of a file.
func readSome(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 256<<10))
}
