package outputapi

import (
	"io"
	"log/slog"
	"strings"
)

// newLogHandler returns a handler that writes what go-plugin takes for a log
// entry: JSON lines whose level, message and time are called as hclog calls
// them.
func newLogHandler(w io.Writer) slog.Handler {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: logAttr})
}

func logAttr(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return a
	}
	switch {
	case a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime:
		return slog.String("@timestamp", a.Value.Time().Format("2006-01-02T15:04:05.000000Z07:00"))
	case a.Key == slog.MessageKey:
		return slog.String("@message", a.Value.String())
	case a.Key == slog.LevelKey:
		if level, ok := a.Value.Any().(slog.Level); ok {
			return slog.String("@level", levelName(level))
		}
	}
	// go-plugin panics if a name of hclog's has a value of another type.
	a.Key = strings.TrimLeft(a.Key, "@")
	return a
}

func levelName(level slog.Level) string {
	switch {
	case level < slog.LevelInfo:
		return "debug"
	case level < slog.LevelWarn:
		return "info"
	case level < slog.LevelError:
		return "warn"
	}
	return "error"
}
