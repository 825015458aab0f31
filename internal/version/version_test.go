package version

import (
	"runtime/debug"
	"testing"
)

func TestDescribe(t *testing.T) {
	commit := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123456789abcdef01234567"}
	tests := map[string]struct {
		info debug.BuildInfo
		want string
	}{
		"nothing recorded": {want: "dev"},
		"go install of a release": {
			info: debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}},
			want: "v1.2.3",
		},
		"a clean checkout": {
			info: debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{commit}},
			want: "dev-0123456789ab",
		},
		"a changed checkout": {
			info: debug.BuildInfo{Settings: []debug.BuildSetting{commit, {Key: "vcs.modified", Value: "true"}}},
			want: "dev-0123456789ab+changes",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := describe(&tt.info); got != tt.want {
				t.Errorf("describe(%+v) = %q, want %q", tt.info, got, tt.want)
			}
		})
	}
}

func TestStringPrefersTheRelease(t *testing.T) {
	before := Version
	t.Cleanup(func() { Version = before })
	Version = "9.8.7"
	if got := String(); got != "9.8.7" {
		t.Errorf("String() = %q, want %q", got, "9.8.7")
	}
}
