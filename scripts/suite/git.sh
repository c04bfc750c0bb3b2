# Tests of git in the current directory; the source is made elsewhere, in $1.
export GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a GIT_TERMINAL_PROMPT=0

# fill DIR N: N files in some directories, different for each N
fill() {
	i=0
	while [ $i -lt "$2" ]; do
		mkdir -p "$1/d$((i % 17))/e$((i % 5))"
		seq $i $((i + 200)) >"$1/d$((i % 17))/e$((i % 5))/f$i"
		i=$((i + 1))
	done
}

# history DIR: a repository with three commits
history() {
	git init -q -b main "$1"
	for n in 50 150 300; do
		fill "$1" $n
		git -C "$1" add -A
		git -C "$1" commit -q -m "$n"
	done
}

t_commit() {
	history r
	git -C r fsck --full --strict
	[ -z "$(git -C r status --porcelain)" ]
	[ "$(git -C r rev-list --count main)" = 3 ]
}

t_clone() {
	from=$(mktemp -d "$1/git.XXXXXX")
	history "$from/r"
	git clone -q --no-hardlinks "$from/r" c
	git -C c fsck --full --strict
	git clone -q --mirror c m.git
	git -C m.git fsck --full --strict
	[ "$(git -C m.git rev-parse main)" = "$(git -C "$from/r" rev-parse main)" ]
	diff -r -x .git "$from/r" c
	rm -rf "$from"
}

t_repack() {
	history r
	git -C r gc -q --aggressive --prune=now
	git -C r repack -q -a -d -f
	git -C r fsck --full --strict
	[ -z "$(git -C r status --porcelain)" ]
}

t_worktree() {
	history r
	git -C r worktree add -q ../w HEAD~2
	git -C w switch -q -c side
	echo x >w/new
	git -C w add new
	git -C w commit -q -m side
	git -C r merge -q --no-edit side
	git -C r stash list
	git -C r fsck --full --strict
	[ "$(cat r/new)" = x ]
}
