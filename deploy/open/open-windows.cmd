@echo off
rem Double-click this: it makes the environment once and opens the page. Not tried on Windows.
setlocal
set "here=%~dp0..\.."
if "%MOS_HOME%"=="" set "MOS_HOME=%USERPROFILE%\mix-of-show"
if not exist "%MOS_HOME%" mkdir "%MOS_HOME%"
set "made=%MOS_HOME%\made-from"
set "from=constraints.txt pyproject.toml common\mos_common\release.py"
if not exist "%MOS_HOME%\venv\Scripts\mos-client.exe" goto make
for %%f in (%from%) do fc /b "%here%\%%f" "%made%\%%~nxf" >nul 2>nul || goto make
goto run
:make
where py >nul 2>nul
if errorlevel 1 goto nopython
py -3 -c "import sys; sys.exit(sys.version_info < (3, 11))"
if errorlevel 1 goto nopython
echo Setting up, once for this release. This takes some minutes and 2 GB or more of disk.
py -3 -m venv "%MOS_HOME%\venv"
if errorlevel 1 goto failed
"%MOS_HOME%\venv\Scripts\python.exe" -m pip install --disable-pip-version-check --constraint "%here%\constraints.txt" "%here%"
if errorlevel 1 goto failed
if not exist "%made%" mkdir "%made%"
for %%f in (%from%) do copy /y "%here%\%%f" "%made%\%%~nxf" >nul
:run
cd /d "%MOS_HOME%"
"%MOS_HOME%\venv\Scripts\mos-client.exe" open %*
if errorlevel 1 goto failed
exit /b 0
:nopython
echo error: Python 3.11 or newer is needed: install it from python.org, and start this again.
pause
exit /b 1
:failed
echo error: the lines above say why.
pause
exit /b 1
