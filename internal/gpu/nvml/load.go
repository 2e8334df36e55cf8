package nvml

import (
	"fmt"

	"github.com/ebitengine/purego"

	"github.com/tallystick/tallystick/internal/gpu"
)

// load opens the library and finds the functions that it has. Each takes and
// gives only numbers and pointers to memory that Go keeps until it returns.
func load(path string) (*library, error) {
	handle, err := purego.Dlopen(path, purego.RTLD_LAZY|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("%w: %s cannot be loaded", gpu.ErrAbsent, path) // err's own text is often empty
	}
	l := &library{close: func() error { return purego.Dlclose(handle) }}
	for name, f := range l.symbols() {
		if symbol, err := purego.Dlsym(handle, name); err == nil && symbol != 0 {
			purego.RegisterFunc(f, symbol)
		}
	}
	return l, nil
}

// symbols are the functions by their names in the library.
func (l *library) symbols() map[string]any {
	return map[string]any{
		"nvmlInit_v2":                               &l.init,
		"nvmlShutdown":                              &l.shutdown,
		"nvmlSystemGetDriverVersion":                &l.driverVersion,
		"nvmlSystemGetProcessName":                  &l.processName,
		"nvmlDeviceGetCount_v2":                     &l.count,
		"nvmlDeviceGetHandleByIndex_v2":             &l.byIndex,
		"nvmlDeviceGetUUID":                         &l.uuid,
		"nvmlDeviceGetName":                         &l.name,
		"nvmlDeviceGetPciInfo_v3":                   &l.pci,
		"nvmlDeviceGetUtilizationRates":             &l.utilization,
		"nvmlDeviceGetEncoderUtilization":           &l.encoder,
		"nvmlDeviceGetDecoderUtilization":           &l.decoder,
		"nvmlDeviceGetMemoryInfo_v2":                &l.memory,
		"nvmlDeviceGetPowerUsage":                   &l.power,
		"nvmlDeviceGetEnforcedPowerLimit":           &l.powerLimit,
		"nvmlDeviceGetTotalEnergyConsumption":       &l.energy,
		"nvmlDeviceGetTemperature":                  &l.temperature,
		"nvmlDeviceGetClockInfo":                    &l.clock,
		"nvmlDeviceGetFanSpeed":                     &l.fan,
		"nvmlDeviceGetPerformanceState":             &l.performance,
		"nvmlDeviceGetCurrentClocksThrottleReasons": &l.reasons,
		"nvmlDeviceGetTotalEccErrors":               &l.ecc,
		"nvmlDeviceGetComputeRunningProcesses_v3":   &l.processes,
		"nvmlDeviceGetProcessUtilization":           &l.processUtilization,
		"nvmlDeviceGetMigMode":                      &l.migMode,
		"nvmlDeviceGetMaxMigDeviceCount":            &l.migCount,
		"nvmlDeviceGetMigDeviceHandleByIndex":       &l.migByIndex,
		"nvmlDeviceGetGpuInstanceId":                &l.gpuInstanceID,
		"nvmlDeviceGetComputeInstanceId":            &l.computeInstanceID,
	}
}
