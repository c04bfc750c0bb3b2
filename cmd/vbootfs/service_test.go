package main

import (
	"strings"
	"testing"
)

// unit is a setting of the unit file, "" if it has none.
func unit(t *testing.T, name string) string {
	t.Helper()
	for _, line := range strings.Split(string(read(t, "../../docs/vbootfs.service")), "\n") {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return value
		}
	}
	return ""
}

// TestServiceNeedsNoMoreThanItHas starts the daemon with the privileges that the unit file gives it.
func TestServiceNeedsNoMoreThanItHas(t *testing.T) {
	m := unmounted(t)
	bounds := "-all"
	for _, c := range strings.Fields(unit(t, "CapabilityBoundingSet")) {
		bounds += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	must(t, "setpriv", "--bounding-set="+bounds, "--no-new-privs", "sh", "-c", "umask "+unit(t, "UMask")+`; exec "$@"`, "sh",
		binary, tempDir(t), m.dir, "-o", "segdir="+m.segs+",log="+m.logFile())
	m.adopt()
	m.put(makeModel(t, "1M", 1), "a.gguf")
	m.expect("a.gguf", "state", "loaded")
	if text := string(read(t, m.boot("status"))); !strings.Contains(text, "passthrough on") {
		t.Errorf("status is %s", text)
	}
	if want := len(needed); strings.Count(bounds, "+") != want {
		t.Errorf("the unit gives %s, the daemon keeps %d capabilities", bounds, want)
	}
	must(t, "sh", "-c", `umask 022; touch "$0"/f; [ "$(stat -c %a "$0"/f)" = 644 ]`, m.out(""))
}

// TestServiceHasNoMountNamespace looks for options that would hide the mount.
func TestServiceHasNoMountNamespace(t *testing.T) {
	for _, name := range []string{"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateUsers",
		"ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ProtectProc", "ProcSubset", "ProtectHostname", "ProtectClock",
		"ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths", "TemporaryFileSystem", "BindPaths",
		"BindReadOnlyPaths", "RootDirectory", "RootImage", "MountImages", "DynamicUser", "StateDirectory", "RuntimeDirectory", "MountFlags"} {
		if value := unit(t, name); value != "" {
			t.Errorf("%s=%s can make a mount namespace", name, value)
		}
	}
}
