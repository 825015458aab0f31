package conf

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestCapabilityNumbers(t *testing.T) {
	o := Output{Capabilities: []string{"net_admin", "chown", "dac_override", "sys_admin", "setfcap", "checkpoint_restore"}}
	want := []uintptr{
		unix.CAP_NET_ADMIN, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_SYS_ADMIN, unix.CAP_SETFCAP, unix.CAP_CHECKPOINT_RESTORE,
	}
	if diff := cmp.Diff(want, o.CapabilityNumbers()); diff != "" {
		t.Errorf("numbers (-want +got):\n%s", diff)
	}
	if len(capabilities) != unix.CAP_LAST_CAP+1 {
		t.Errorf("%d capabilities, want %d", len(capabilities), unix.CAP_LAST_CAP+1)
	}
}

func TestOutputSettings(t *testing.T) {
	o := Output{Settings: map[string]any{"route": "/bin/true", "command_first": true, "count": int64(1)}}
	for name, want := range map[string]string{"route": "/bin/true", "command_first": "", "count": "", "missing": ""} {
		if got := o.Text(name); got != want {
			t.Errorf("Text(%q) = %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]bool{"route": false, "command_first": true, "count": false, "missing": false} {
		if got := o.Flag(name); got != want {
			t.Errorf("Flag(%q) = %v, want %v", name, got, want)
		}
	}
	if (Output{}).Text("route") != "" || (Output{}).Flag("command_first") {
		t.Error("an output without settings has some")
	}
}
