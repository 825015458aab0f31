// Package version says which build of Portsnare is running.
package version

import "runtime/debug"

// Version is the release, stamped in by the linker:
//
//	go build -ldflags "-X github.com/portsnare/portsnare/internal/version.Version=1.2.3"
//
// It stays "dev" in a build without the flag.
var Version = "dev"

// String returns the release or, in a build without one, "dev" with what the
// Go toolchain recorded: the module's version or the commit.
func String() string {
	if Version != "dev" {
		return Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return Version
	}
	return describe(info)
}

// describe names a build that carries no release.
func describe(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	if revision == "" {
		return "dev"
	}
	return "dev-" + revision + dirty
}
